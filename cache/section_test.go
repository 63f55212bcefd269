package cache

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// A section's descriptor must read the same bytes while the partial file it
// points into becomes a blob, and after everything was closed.
func TestSectionOutlivesThePartialFile(t *testing.T) {
	r := newImage(20*chunkSize + 5)
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	const off, n = 3*chunkSize + 7, 2 * chunkSize
	held, err := b.Section(t.Context(), off, n)
	if err != nil || held.File == nil {
		t.Fatalf("Section: %v %v", held.File, err)
	}
	same := func(when string) {
		t.Helper()
		p := make([]byte, n)
		if _, err := held.File.ReadAt(p, off); err != nil || !bytes.Equal(p, r.data[off:off+n]) {
			t.Fatalf("%s: wrong bytes, %v", when, err)
		}
	}
	same("cold")
	if b.Complete() {
		t.Fatal("one read brought the whole image")
	}
	mustWait(t, b)
	same("after the promotion")
	whole, err := b.Section(t.Context(), 0, len(r.data))
	if f, _ := b.File(); err != nil || whole.File != f {
		t.Errorf("a whole image is not read from its blob: %v", err)
	}
	whole.Release()
	b.Close()
	closeStore(t, s)
	same("after the close")
	held.Release()
	if _, err := held.File.Stat(); err == nil {
		t.Error("the descriptor outlives the last hold on it")
	}
}

func TestSectionRefusesWhatIsNotThere(t *testing.T) {
	r := newImage(2 * chunkSize)
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	for _, c := range []struct {
		off int64
		n   int
	}{{-1, 1}, {0, 0}, {0, len(r.data) + 1}, {b.Size(), 1}} {
		_, err := b.Section(t.Context(), c.off, c.n)
		wantKind(t, err, backends.Invalid)
	}
	r.setFault(func(int64, int64) fault {
		return fault{err: backends.Errorf("test", backends.Ref{}, backends.Denied, "no")}
	})
	_, err := b.Section(t.Context(), 0, 1)
	wantKind(t, err, backends.Denied)
}

// Without a file to keep bytes in, a section has none, and ReadAt works.
func TestSectionWithoutADisk(t *testing.T) {
	r := newImage(4 * chunkSize)
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	b.c.mu.Lock()
	b.c.avoidDisk(os.ErrPermission)
	b.c.mu.Unlock()
	got, err := b.Section(t.Context(), 0, 100)
	if err != nil || got.File != nil {
		t.Fatalf("Section: %v %v", got.File, err)
	}
	mustRead(t, b, r.data, 0, 100)
}

func TestHashStaysBehindAFastStream(t *testing.T) {
	start := time.Unix(0, 0)
	var p pace
	for i := range 10 { // 1 MiB each 5 ms
		p.note(start.Add(time.Duration(i)*5*time.Millisecond), 1<<20)
	}
	if !p.fast {
		t.Error("200 MB/s are not fast")
	}
	c := &content{state: make([]chunkState, 2*maxLag), missing: 1, prefix: hashStep}
	for name, want := range map[string]struct {
		change func()
		now    bool
	}{
		"a fast stream": {func() {}, false},
		"a slow one":    {func() { c.check.pace.fast = false }, true},
		"far behind":    {func() { c.prefix = maxLag + 1 }, true},
		"all is here":   {func() { c.missing = 0 }, true},
		"a pull":        {func() { c.fillers = 1 }, true},
		"caught up":     {func() { c.check.pos, c.missing = c.prefix, 0 }, false},
	} {
		c.missing, c.prefix, c.fillers, c.check = 1, hashStep, 0, checkState{pace: p}
		if want.change(); c.hashNow() != want.now {
			t.Errorf("%s: hashes now: %v", name, !want.now)
		}
	}
	for i := range 10 { // 1 MiB each 50 ms
		p.note(start.Add(time.Second+time.Duration(i)*50*time.Millisecond), 1<<20)
	}
	if p.fast {
		t.Error("20 MB/s are fast")
	}
}

// A stream that breaks must not lose the whole chunks it brought, although they are stored together.
func TestBrokenStreamKeepsWholeChunks(t *testing.T) {
	r := newImage(8 * chunkSize)
	broke := false
	r.setFault(func(_, n int64) fault {
		if broke || n < 8*chunkSize {
			return fault{}
		}
		broke = true
		return fault{cut: unavailable(), after: 5*chunkSize + 99}
	})
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	mustRead(t, b, r.data, 0, len(r.data))
	if got := r.read.Load(); !broke || got != int64(len(r.data)) {
		t.Errorf("%d bytes moved for %d, broken: %v", got, len(r.data), broke)
	}
}
