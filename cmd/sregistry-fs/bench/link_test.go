//go:build bench

package bench

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// link is a slow line to a server on this machine. All connections share
// its width, as they do in the world: a proxy that limits each of them
// (toxiproxy, for one) would make the link wider for who opens more.
type link struct {
	ln       net.Listener
	upstream string
	rate     float64       // bytes a second, towards the client
	delay    time.Duration // one way
	down, up atomic.Int64  // bytes that went through

	mu   sync.Mutex
	free time.Time // when what is on the line will have passed
}

const (
	linkRate  = 100e6 / 8
	linkDelay = 10 * time.Millisecond
	// linkSlack is how late a sleep may end without the line standing idle.
	linkSlack  = 5 * time.Millisecond
	linkPiece  = 16 << 10
	linkWindow = 64 // pieces in flight on one connection, which is 1 MiB
)

func newLink(t testing.TB, upstream string, rate float64, delay time.Duration) *link {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{ln: ln, upstream: upstream, rate: rate, delay: delay}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go l.serve(conn)
		}
	}()
	return l
}

func (l *link) addr() string { return l.ln.Addr().String() }

func (l *link) serve(client net.Conn) {
	defer client.Close()
	time.Sleep(2 * l.delay) // the handshake
	server, err := net.Dial("tcp", l.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	var wg sync.WaitGroup
	wg.Go(func() { l.pass(server, client, &l.up, nil) })
	wg.Go(func() { l.pass(client, server, &l.down, l.turn) })
	wg.Wait()
}

// turn waits until n bytes have had their time on the line.
func (l *link) turn(n int) {
	l.mu.Lock()
	if earliest := time.Now().Add(-linkSlack); l.free.Before(earliest) {
		l.free = earliest
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	until := l.free
	l.mu.Unlock()
	time.Sleep(time.Until(until))
}

// pass copies from one side to the other, later.
func (l *link) pass(to, from net.Conn, count *atomic.Int64, turn func(int)) {
	type piece struct {
		data []byte
		due  time.Time
	}
	line := make(chan piece, linkWindow)
	go func() {
		defer close(line)
		for {
			data := make([]byte, linkPiece)
			n, err := from.Read(data)
			if n > 0 {
				if turn != nil {
					turn(n)
				}
				count.Add(int64(n))
				line <- piece{data[:n], time.Now().Add(l.delay)}
			}
			if err != nil {
				return
			}
		}
	}()
	broken := false
	for p := range line {
		if broken {
			continue // so that the other side ends as well
		}
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			broken = true
			from.Close()
		}
	}
	if half, ok := to.(*net.TCPConn); ok {
		_ = half.CloseWrite() // the other direction may still have something
	}
}

// Two connections are no faster than one, and an answer takes a round trip.
func TestLink(t *testing.T) {
	const size, rate = 1 << 20, 8 << 20
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var b [1]byte
				if _, err := io.ReadFull(conn, b[:]); err == nil {
					_, _ = conn.Write(make([]byte, size))
				}
			}()
		}
	}()
	l := newLink(t, ln.Addr().String(), rate, 20*time.Millisecond)
	get := func() error {
		conn, err := net.Dial("tcp", l.addr())
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{1}); err != nil {
			return err
		}
		if n, err := io.Copy(io.Discard, conn); err != nil || n != size {
			return errors.Join(io.ErrUnexpectedEOF, err)
		}
		return nil
	}
	for _, parallel := range []int{1, 2, 4} {
		start := time.Now()
		var wg sync.WaitGroup
		for range parallel {
			wg.Go(func() {
				if err := get(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		took, least := time.Since(start), time.Duration(parallel)*time.Second*size/rate
		if took < least || took > 3*least+200*time.Millisecond {
			t.Errorf("%d connections took %s, want a little over %s", parallel, took, least+80*time.Millisecond)
		}
	}
	if l.down.Load() != 7*size || l.up.Load() != 7 {
		t.Errorf("counted %d down and %d up", l.down.Load(), l.up.Load())
	}
}
