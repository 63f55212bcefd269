package cache

import (
	"io"
	"time"
)

const (
	// landingChunks is how many chunks are stored together: 1 MiB. A write to
	// the page cache, an entry in the map and a wake-up cost more than their bytes.
	landingChunks = 8
	// landingSoon and landingLate bound how long a chunk that has arrived waits
	// for its neighbours: with a reader that waits for it, and without.
	landingSoon = 2 * time.Millisecond
	landingLate = 50 * time.Millisecond
)

// landing gathers the chunks of one stream in their order and stores them
// together. It belongs to the goroutine that reads the stream.
type landing struct {
	c     *content
	buf   *[landingChunks * chunkSize]byte
	first int                   // the chunk that buf begins with
	crcs  [landingChunks]uint32 // of the whole chunks in buf
	full  int                   // whole chunks in buf
	have  int                   // bytes of the chunk after them
	since time.Time             // when the first of them was asked for
}

// land begins at chunk first. The caller calls done.
func (c *content) land(first int) *landing {
	return &landing{c: c, buf: c.s.landings.Get().(*[landingChunks * chunkSize]byte), first: first, since: time.Now()}
}

func (l *landing) done() { l.c.s.landings.Put(l.buf) }

// next is the chunk that arrives.
func (l *landing) next() int { return l.first + l.full }

// rest is the place of the chunk that arrives.
func (l *landing) rest() []byte {
	return l.buf[l.full*chunkSize:][:chunkLen(l.next(), l.c.size)]
}

// read brings the chunk that arrives, from where an earlier stream ended.
func (l *landing) read(p *patience, r io.Reader) (err error) {
	l.have, err = p.fill(r, l.rest(), l.have)
	return err
}

// keep counts the chunk that arrived among the whole ones.
func (l *landing) keep(crc uint32) {
	l.crcs[l.full] = crc
	l.full++
	l.have = 0
}

// due reports whether it is time to store, given whether a reader waits.
func (l *landing) due(wanted bool) bool {
	took := time.Since(l.since)
	return l.full == landingChunks || took > landingLate || wanted && took > landingSoon
}

// store writes the whole chunks to the partial file and tells the readers.
// f is the flight that brought them, or nil.
func (l *landing) store(f *rangeFlight) error {
	n := l.full
	if n == 0 {
		return nil
	}
	c := l.c
	end := (n-1)*chunkSize + chunkLen(l.first+n-1, c.size)
	if err := c.put(l.first, l.buf[:end], l.crcs[:n]); err != nil {
		l.full = 0 // they are lost; nobody tries again
		return err
	}
	c.mu.Lock()
	c.arrived(l.first, l.crcs[:n])
	if f != nil {
		f.next = l.first + n
	}
	c.mu.Unlock()
	copy(l.buf[:l.have], l.buf[n*chunkSize:])
	l.first, l.full, l.since = l.first+n, 0, time.Now()
	return nil
}

// skip goes on behind a chunk that is not to be stored; there are no whole
// ones before it.
func (l *landing) skip() { l.first, l.have, l.since = l.first+1, 0, time.Now() }
