package cache

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/sregistry/sregistry-fs/backends"
)

// TestStoreAgainstBytes compares a store with the plain bytes of its image
// while readers come and go, the line breaks, processes end and files rot.
// Reads may fail while something is broken; wrong bytes are never right.
func TestStoreAgainstBytes(t *testing.T) {
	memory := "/dev/shm" // spares the fsyncs, of which nothing here depends
	if _, err := os.Stat(memory); err != nil {
		memory = ""
	}
	// Some 25 sequences take seconds; -rapid.checks asks for more.
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		_ = f.Value.Set("25")
		defer func() { _ = f.Value.Set(f.DefValue) }()
	}
	rapid.Check(t, func(rt *rapid.T) {
		r := newImage(rapid.IntRange(1, 20*chunkSize).Draw(rt, "size"))
		set := r.ranged()
		if rapid.Bool().Draw(rt, "plain") {
			set = r.plain()
		}
		rec := r.rec()
		switch rapid.IntRange(0, 2).Draw(rt, "known") {
		case 1:
			rec.Digest = r.sum()
		case 2:
			rec.Size = backends.UnknownSize
		}
		dir, err := os.MkdirTemp(memory, "store")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		start := func() *Store { return openStore(t, dir, set) }
		s := start()
		var blobs []*Blob
		broken := 0 // requests that fail from here on
		r.setFault(func(_, n int64) fault {
			if broken == 0 {
				return fault{}
			}
			broken--
			if broken%2 == 0 {
				return fault{err: unavailable()}
			}
			return fault{cut: unavailable(), after: n / 3}
		})
		stop := func() {
			for _, b := range blobs {
				b.Close()
			}
			blobs = nil
			closeStore(t, s)
		}
		defer func() { stop() }()
		read := func(b *Blob, off, n int) {
			p := make([]byte, n)
			got, err := b.ReadAt(t.Context(), p, int64(off))
			want := r.data[min(off, len(r.data)):min(off+n, len(r.data))]
			if !bytes.Equal(p[:got], want[:got]) {
				t.Errorf("ReadAt(%d, %d): wrong bytes", off, n)
			}
			switch {
			case err == io.EOF && off+n > len(r.data), err == nil:
				if got != len(want) {
					t.Errorf("ReadAt(%d, %d) = %d, %v", off, n, got, err)
				}
			case errors.Is(err, backends.Unavailable):
			default:
				t.Errorf("ReadAt(%d, %d): %v", off, n, err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"open": func(rt *rapid.T) {
				b, err := s.Open(t.Context(), rec)
				if err != nil {
					if !errors.Is(err, backends.Unavailable) {
						rt.Fatalf("Open: %v", err)
					}
					return
				}
				if b.Size() != int64(len(r.data)) {
					rt.Fatalf("size %d of %d", b.Size(), len(r.data))
				}
				blobs = append(blobs, b)
			},
			"close": func(rt *rapid.T) {
				if len(blobs) == 0 {
					rt.Skip()
				}
				i := rapid.IntRange(0, len(blobs)-1).Draw(rt, "blob")
				blobs[i].Close()
				blobs = append(blobs[:i], blobs[i+1:]...)
			},
			"read": func(rt *rapid.T) {
				if len(blobs) == 0 {
					rt.Skip()
				}
				seed := rapid.Uint64().Draw(rt, "seed")
				var wg sync.WaitGroup
				for g := range rapid.IntRange(1, 4).Draw(rt, "readers") {
					b := blobs[g%len(blobs)]
					wg.Go(func() {
						x := rand.New(rand.NewPCG(seed, uint64(g)))
						off := x.IntN(len(r.data))
						for range 4 {
							n := 1 + x.IntN(3*chunkSize)
							read(b, off, n)
							off = (off + n) % len(r.data)
						}
					})
				}
				wg.Wait()
			},
			"whole": func(rt *rapid.T) {
				if len(blobs) == 0 {
					rt.Skip()
				}
				if err := blobs[0].Wait(t.Context(), nil); err != nil {
					if !errors.Is(err, backends.Unavailable) {
						rt.Fatalf("Wait: %v", err)
					}
					return
				}
				if blobs[0].Digest() != r.sum() {
					rt.Fatal("complete with another digest")
				}
			},
			"break": func(rt *rapid.T) {
				r.mu.Lock()
				broken = rapid.IntRange(0, 12).Draw(rt, "requests")
				r.mu.Unlock()
			},
			"evict": func(rt *rapid.T) {
				if err := s.evict(t.Context(), 1, 0); err != nil {
					rt.Fatal(err)
				}
			},
			"restart": func(rt *rapid.T) {
				stop()
				if rapid.Bool().Draw(rt, "rot") {
					rot(rt, dir)
				}
				s = start()
			},
			"": func(rt *rapid.T) {
				if t.Failed() {
					rt.Fatal("see above")
				}
			},
		})
	})
}

// rot damages one file of the store the way a program, a disk or a power cut might.
func rot(rt *rapid.T, dir string) {
	var files []string
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, _ error) error {
		if e != nil && e.Type().IsRegular() {
			files = append(files, path)
		}
		return nil
	})
	if len(files) == 0 {
		return
	}
	path := files[rapid.IntRange(0, len(files)-1).Draw(rt, "file")]
	_ = os.Chmod(path, 0o600)
	fi, err := os.Stat(path)
	if err != nil || fi.Size() == 0 {
		return
	}
	at := rapid.Int64Range(0, fi.Size()-1).Draw(rt, "at")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		rt.Fatal(err)
	}
	defer f.Close()
	switch rapid.IntRange(0, 3).Draw(rt, "how") {
	case 0:
		var b [1]byte
		_, _ = f.ReadAt(b[:], at)
		b[0] ^= 0xff
		_, err = f.WriteAt(b[:], at)
	case 1:
		err = f.Truncate(at)
	case 2:
		_, err = f.WriteAt(make([]byte, min(5000, fi.Size()-at)), at)
	case 3:
		_, err = f.WriteAt([]byte("more"), fi.Size())
	}
	if err != nil {
		rt.Fatal(err)
	}
}
