package cache

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sregistry/sregistry-fs/backends"
)

// oneImage is a registry of one image that misbehaves on demand. The zero
// fault is none.
type oneImage struct {
	data      []byte
	size      int64 // told by streams; UnknownSize hides it
	validator string

	mu     sync.Mutex
	fault  func(off, n int64) fault
	opens  int
	ranges int
	read   atomic.Int64
}

type fault struct {
	err       error // instead of a stream
	after     int64 // bytes until cut, extra or stall
	cut       error // what the body ends with
	flip      bool  // a wrong byte at after
	extra     bool  // the body goes on beyond its promise
	stall     bool  // until the context ends
	validator string
	size      int64
	gate      chan struct{} // what the body waits for before its first byte
}

func newImage(n int) *oneImage {
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	data := make([]byte, n)
	_, _ = r.Read(data)
	return &oneImage{data: data, size: int64(n), validator: "v1"}
}

func (r *oneImage) setFault(f func(off, n int64) fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = f
}

func (r *oneImage) counts() (opens, ranges int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opens, r.ranges
}

func (*oneImage) Collections(context.Context) iter.Seq2[string, error] { return nil }

func (*oneImage) Images(context.Context, string) iter.Seq2[backends.Record, error] { return nil }

func (r *oneImage) Stat(context.Context, backends.Ref) (backends.Record, error) {
	return r.rec(), nil
}
func (*oneImage) Close() error { return nil }

func (r *oneImage) Open(ctx context.Context, _ backends.Record) (*backends.Stream, error) {
	r.mu.Lock()
	r.opens++
	r.mu.Unlock()
	return r.stream(ctx, 0, int64(len(r.data)))
}

func (r *oneImage) OpenRange(ctx context.Context, _ backends.Record, off, n int64) (*backends.Stream, error) {
	r.mu.Lock()
	r.ranges++
	r.mu.Unlock()
	if off < 0 || n <= 0 || off+n > int64(len(r.data)) {
		panic("a range beyond the image")
	}
	return r.stream(ctx, off, n)
}

func (r *oneImage) stream(ctx context.Context, off, n int64) (*backends.Stream, error) {
	r.mu.Lock()
	var f fault
	if r.fault != nil {
		f = r.fault(off, n)
	}
	r.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	st := &backends.Stream{Size: r.size, Validator: r.validator}
	if f.validator != "" {
		st.Validator = f.validator
	}
	if f.size != 0 {
		st.Size = f.size
	}
	st.ReadCloser = io.NopCloser(&body{ctx: ctx, r: r, f: f, left: r.data[off : off+n]})
	return st, nil
}

type body struct {
	ctx  context.Context
	r    *oneImage
	f    fault
	left []byte
	done int64
}

func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.f.gate != nil {
		select {
		case <-b.f.gate:
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
	if b.f.cut != nil || b.f.stall {
		if b.done >= b.f.after {
			if b.f.stall {
				<-b.ctx.Done()
				return 0, b.ctx.Err()
			}
			return 0, b.f.cut
		}
		p = p[:min(int64(len(p)), b.f.after-b.done)]
	}
	if len(b.left) == 0 {
		if b.f.extra && len(p) > 0 {
			return 1, nil
		}
		return 0, io.EOF
	}
	n := copy(p, b.left)
	if b.f.flip && b.done <= b.f.after && b.f.after < b.done+int64(n) {
		p[b.f.after-b.done] ^= 0x80
	}
	b.left = b.left[n:]
	b.done += int64(n)
	b.r.read.Add(int64(n))
	return n, nil
}

func (r *oneImage) rec() backends.Record {
	return backends.Record{Ref: backends.Ref{Collection: "c", Image: "i", Tag: "t"}, Version: "1", Size: int64(len(r.data))}
}

func (r *oneImage) sum() backends.Digest {
	s := sha256.Sum256(r.data)
	return backends.SHA256(s[:])
}

func (r *oneImage) ranged() backends.Set { return backends.Set{Backend: r, Ranges: r} }
func (r *oneImage) plain() backends.Set  { return backends.Set{Backend: r} }

func unavailable() error {
	return backends.Errorf("test", backends.Ref{}, backends.Unavailable, "the line broke")
}

func openStore(t testing.TB, dir string, set backends.Set, change ...func(*StoreOptions)) *Store {
	t.Helper()
	opt := StoreOptions{Dir: dir, Registry: "test:", Backend: set, Log: slog.New(slog.DiscardHandler), Now: time.Now}
	for _, f := range change {
		f(&opt)
	}
	s, err := NewStore(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func mustOpen(t testing.TB, s *Store, rec backends.Record) *Blob {
	t.Helper()
	b, err := s.Open(t.Context(), rec)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return b
}

func mustRead(t testing.TB, b *Blob, want []byte, off, n int) {
	t.Helper()
	p := make([]byte, n)
	got, err := b.ReadAt(t.Context(), p, int64(off))
	if err != nil || got != n {
		t.Fatalf("ReadAt(%d, %d) = %d, %v", off, n, got, err)
	}
	if !bytes.Equal(p, want[off:off+n]) {
		i := 0
		for p[i] == want[off+i] {
			i++
		}
		t.Fatalf("ReadAt(%d, %d): a wrong byte at %d", off, n, off+i)
	}
}

func mustWait(t testing.TB, b *Blob) {
	t.Helper()
	if err := b.Wait(t.Context(), nil); err != nil {
		t.Fatalf("Wait: %v", err)
	}
}

func wantKind(t testing.TB, err error, kind backends.Kind) {
	t.Helper()
	if err == nil || backends.KindOf(err) != kind {
		t.Fatalf("error %v is of kind %v, want %v", err, backends.KindOf(err), kind)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc")
	}
	return len(names)
}

func TestMissFetchesExactlyItsChunks(t *testing.T) {
	r := newImage(10*chunkSize + 77)
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	if b.Size() != int64(len(r.data)) {
		t.Fatalf("size %d", b.Size())
	}
	if _, ranges := r.counts(); ranges != 0 {
		t.Fatalf("a known size cost %d requests", ranges)
	}
	mustRead(t, b, r.data, 5*chunkSize+3, 100)
	if got := r.read.Load(); got != chunkSize {
		t.Fatalf("a small read moved %d bytes", got)
	}
	mustRead(t, b, r.data, 5*chunkSize+200, 1000)
	mustRead(t, b, r.data, len(r.data)-5, 5)
	if got := r.read.Load(); got != chunkSize+77 {
		t.Fatalf("three small reads moved %d bytes", got)
	}
	p := make([]byte, 10)
	if n, err := b.ReadAt(t.Context(), p, int64(len(r.data))-5); n != 5 || err != io.EOF {
		t.Fatalf("a read over the end: %d, %v", n, err)
	}
	if n, err := b.ReadAt(t.Context(), p, int64(len(r.data))); n != 0 || err != io.EOF {
		t.Fatalf("a read past the end: %d, %v", n, err)
	}
}

func TestWholeReadIsVerifiedAndKept(t *testing.T) {
	for name, set := range map[string]func(*oneImage) backends.Set{"ranges": (*oneImage).ranged, "plain": (*oneImage).plain} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 40*chunkSize + 5} {
				r := newImage(n)
				dir := t.TempDir()
				var learned backends.Digest
				s := openStore(t, dir, set(r), func(o *StoreOptions) {
					o.Learn = func(_ backends.Record, _ int64, d backends.Digest) { learned = d }
				})
				b := mustOpen(t, s, r.rec())
				if n > 0 {
					mustRead(t, b, r.data, 0, n)
				}
				mustWait(t, b)
				if r.read.Load() != int64(n) {
					t.Errorf("%d bytes moved for %d", r.read.Load(), n)
				}
				f, ok := b.File()
				if !ok || !b.Complete() || b.Digest() != r.sum() {
					t.Fatalf("not complete: %v %v", ok, b.Digest())
				}
				if got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40)); err != nil || !bytes.Equal(got, r.data) {
					t.Fatalf("the file holds other bytes: %v", err)
				}
				if _, err := f.Write([]byte("x")); err == nil {
					t.Error("the blob's descriptor can be written to")
				}
				b.Close()
				closeStore(t, s)
				if learned != r.sum() {
					t.Errorf("learned %v", learned)
				}
				fi, err := os.Stat(filepath.Join(dir, blobDir, r.sum().Hex))
				if err != nil || fi.Mode().Perm() != 0o400 {
					t.Fatalf("blob: %v %v", fi, err)
				}
				if left, _ := os.ReadDir(filepath.Join(dir, partialDir)); len(left) != 0 {
					t.Errorf("partial files are left: %v", left)
				}
				// Again, with the registry down.
				r.setFault(func(int64, int64) fault { return fault{err: unavailable()} })
				s = openStore(t, dir, set(r))
				if size, d, ok := s.Cached(r.rec()); !ok || size != int64(n) || d != r.sum() {
					t.Fatalf("Cached: %d %v %v", size, d, ok)
				}
				b = mustOpen(t, s, r.rec())
				if n > 0 {
					mustRead(t, b, r.data, n/2, n-n/2)
				}
				b.Close()
			}
		})
	}
}

func TestSameDigestIsStoredOnce(t *testing.T) {
	r := newImage(3 * chunkSize)
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	mustWait(t, b)
	b.Close()
	other := r.rec()
	other.Tag, other.Digest = "other", r.sum()
	b = mustOpen(t, s, other)
	defer b.Close()
	mustRead(t, b, r.data, 0, len(r.data))
	if r.read.Load() != int64(len(r.data)) || !b.Complete() {
		t.Fatalf("another tag of a digest that is here moved bytes: %d", r.read.Load())
	}
	other.Tag, other.Digest = "unstated", backends.Digest{}
	b2 := mustOpen(t, s, other)
	defer b2.Close()
	mustWait(t, b2)
	if used, _ := s.Usage(); used > int64(len(r.data))+2*chunkSize {
		t.Fatalf("the same bytes take %d", used)
	}
}

func TestManyReadersMoveTheBytesOnce(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for name, set := range map[string]func(*oneImage) backends.Set{"ranges": (*oneImage).ranged, "plain": (*oneImage).plain} {
		t.Run(name, func(t *testing.T) {
			r := newImage(60*chunkSize + 1234)
			s := openStore(t, t.TempDir(), set(r))
			var wg sync.WaitGroup
			for g := range 64 {
				wg.Go(func() {
					b, err := s.Open(t.Context(), r.rec())
					if err != nil {
						t.Error(err)
						return
					}
					defer b.Close()
					p := make([]byte, 100_000)
					start := g % 8 * 7 * chunkSize
					for i := range len(r.data)/len(p) + 1 {
						off := (start + i*len(p)) % len(r.data)
						n, err := b.ReadAt(t.Context(), p, int64(off))
						if err != nil && err != io.EOF || !bytes.Equal(p[:n], r.data[off:off+n]) || n == 0 {
							t.Errorf("read %d at %d: %v", n, off, err)
							return
						}
					}
				})
			}
			wg.Wait()
			if got := r.read.Load(); got != int64(len(r.data)) {
				t.Errorf("64 readers moved %d bytes of %d", got, len(r.data))
			}
			if opens, _ := r.counts(); name == "plain" && opens != 1 {
				t.Errorf("%d downloads", opens)
			}
			closeStore(t, s)
		})
	}
}

func TestReaderLeavesFetchGoesOn(t *testing.T) {
	r := newImage(4 * chunkSize)
	gate := make(chan struct{})
	r.setFault(func(int64, int64) fault { return fault{gate: gate} })
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := b.ReadAt(ctx, make([]byte, 10), 0)
		left <- err
	}()
	for _, ranges := r.counts(); ranges == 0; _, ranges = r.counts() {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatalf("the reader left with %v", err)
	}
	close(gate)
	mustRead(t, b, r.data, 0, 10)
	if _, ranges := r.counts(); ranges != 1 {
		t.Fatalf("%d requests for one chunk", ranges)
	}
}

func TestDemandOvertakesReadAhead(t *testing.T) {
	r := newImage(400 * chunkSize)
	gate := make(chan struct{})
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	mustRead(t, b, r.data, 0, 3*maxStep)
	for quiet := false; !quiet; time.Sleep(time.Millisecond) {
		b.c.mu.Lock()
		quiet = b.c.ahead == 0
		b.c.mu.Unlock()
	}
	r.setFault(func(_, n int64) fault {
		if n > maxStep {
			return fault{gate: gate} // read-ahead stands still
		}
		return fault{}
	})
	defer close(gate)
	mustRead(t, b, r.data, 3*maxStep, maxStep) // sets off more read-ahead
	var far []int                              // chunks that a standing flight would bring at its end
	b.c.mu.Lock()
	for _, f := range b.c.flights {
		if f.end-f.next > stealAfter+1 || !f.running {
			far = append(far, f.end-1)
		}
	}
	b.c.mu.Unlock()
	if len(far) == 0 {
		t.Fatalf("%d flights ahead", len(far))
	}
	for _, i := range far {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		p := make([]byte, 100)
		_, err := b.ReadAt(ctx, p, int64(i)*chunkSize)
		cancel()
		if err != nil || !bytes.Equal(p, r.data[i*chunkSize:][:100]) {
			t.Fatalf("a read of chunk %d waited for read-ahead: %v", i, err)
		}
	}
}

func TestBrokenBodiesAreContinued(t *testing.T) {
	r := newImage(20*chunkSize + 9)
	var calls int
	r.setFault(func(_, n int64) fault {
		calls++
		if calls%2 == 1 {
			return fault{cut: unavailable(), after: n / 2}
		}
		return fault{}
	})
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	mustRead(t, b, r.data, 0, len(r.data))
	mustWait(t, b)
	if got := r.read.Load(); got != int64(len(r.data)) {
		t.Errorf("%d bytes moved of %d: what came before a break came again", got, len(r.data))
	}
}

func TestShortAndLongBodiesAreNoData(t *testing.T) {
	for name, f := range map[string]fault{
		"short": {cut: io.EOF, after: 100},
		"long":  {extra: true},
	} {
		for _, ranges := range []bool{true, false} {
			r := newImage(2 * chunkSize)
			r.setFault(func(int64, int64) fault { return f })
			set := r.plain()
			if ranges {
				set = r.ranged()
			}
			s := openStore(t, t.TempDir(), set)
			b := mustOpen(t, s, r.rec())
			p := make([]byte, chunkSize)
			start := time.Now()
			_, err := b.ReadAt(t.Context(), p, chunkSize) // the last chunk
			if name == "short" {
				// Ranged tries make 100 bytes of progress each and still end.
				wantKind(t, err, backends.Unavailable)
			} else {
				wantKind(t, err, backends.Corrupt)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("took %v", d)
			}
			b.Close()
		}
	}
}

func TestStaleServesWhatIsHere(t *testing.T) {
	for name, f := range map[string]fault{
		"validator": {validator: "v2"},
		"size":      {size: 12345},
		"gone":      {err: backends.Errorf("test", backends.Ref{}, backends.NotFound, "gone")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := newImage(20 * chunkSize)
			s := openStore(t, dir, r.ranged())
			b := mustOpen(t, s, r.rec())
			mustRead(t, b, r.data, 0, 10)
			r.setFault(func(int64, int64) fault { return f })
			_, err := b.ReadAt(t.Context(), make([]byte, 10), 15*chunkSize)
			wantKind(t, err, backends.Stale)
			mustRead(t, b, r.data, 100, 10)
			b.Close()
			closeStore(t, s)
			if left, _ := os.ReadDir(filepath.Join(dir, partialDir)); len(left) != 0 {
				t.Errorf("a stale partial file is kept: %v", left)
			}
		})
	}
}

func TestWrongDigestIsFetchedAgainOnce(t *testing.T) {
	m := md5.Sum(newImage(9 * chunkSize).data)
	stated, _ := backends.NewDigest("md5", hex.EncodeToString(m[:]))
	for name, set := range map[string]func(*oneImage) backends.Set{"ranges": (*oneImage).ranged, "plain": (*oneImage).plain} {
		for _, forever := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				r := newImage(9 * chunkSize)
				var flipped bool
				r.setFault(func(off, n int64) fault {
					if off == 0 && (forever || !flipped) {
						flipped = true
						return fault{flip: true, after: 77}
					}
					return fault{}
				})
				rec := r.rec()
				rec.Digest = stated
				s := openStore(t, dir, set(r))
				b := mustOpen(t, s, rec)
				err := b.Wait(t.Context(), nil)
				if !forever {
					if err != nil {
						t.Fatal(err)
					}
					mustRead(t, b, r.data, 0, len(r.data))
				} else {
					wantKind(t, err, backends.Corrupt)
					_, err = b.ReadAt(t.Context(), make([]byte, 10), 0)
					wantKind(t, err, backends.Corrupt)
					if b.Complete() {
						t.Error("wrong bytes are complete")
					}
				}
				if got := r.read.Load(); got != 2*int64(len(r.data)) {
					t.Errorf("moved %d bytes", got)
				}
				b.Close()
				closeStore(t, s)
				blobs, _ := os.ReadDir(filepath.Join(dir, blobDir))
				if forever == (len(blobs) == 1) {
					t.Errorf("%d blobs", len(blobs))
				}
			})
		}
	}
}

func TestRestartResumes(t *testing.T) {
	dir := t.TempDir()
	r := newImage(50 * chunkSize)
	// The first store is never closed, as after a kill; it keeps its lock, so
	// its directory is copied as the kernel would show it to the next process.
	s := openStore(t, dir, r.ranged())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	for i := range 20 {
		mustRead(t, b, r.data, i*2*chunkSize, 10)
	}
	dead := t.TempDir()
	if err := os.CopyFS(dead, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	before := r.read.Load()
	s2 := openStore(t, dead, r.ranged())
	b2 := mustOpen(t, s2, r.rec())
	defer b2.Close()
	mustWait(t, b2)
	mustRead(t, b2, r.data, 0, len(r.data))
	if got := r.read.Load(); got != int64(len(r.data)) {
		t.Errorf("%d bytes before, %d after: a resume moved chunks again", before, got)
	}
}

func TestTwoStoresOnOneDirectory(t *testing.T) {
	dir := t.TempDir()
	r := newImage(30 * chunkSize)
	var wg sync.WaitGroup
	for range 2 {
		s := openStore(t, dir, r.ranged())
		wg.Go(func() {
			b, err := s.Open(t.Context(), r.rec())
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Close()
			if err := b.Wait(t.Context(), nil); err != nil {
				t.Error(err)
			}
			got := make([]byte, len(r.data))
			if _, err := b.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, r.data) {
				t.Errorf("wrong bytes: %v", err)
			}
		})
	}
	wg.Wait()
	if blobs, _ := os.ReadDir(filepath.Join(dir, blobDir)); len(blobs) != 1 {
		t.Errorf("%d blobs", len(blobs))
	}
	if left, _ := os.ReadDir(filepath.Join(dir, partialDir)); len(left) != 0 {
		t.Errorf("partial files are left: %v", left)
	}
}

func TestUnknownSize(t *testing.T) {
	for name, c := range map[string]struct {
		set  func(*oneImage) backends.Set
		told bool
	}{
		"ranges": {(*oneImage).ranged, true},
		"stream": {(*oneImage).plain, true},
		"secret": {(*oneImage).plain, false},
		"both":   {(*oneImage).ranged, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{1, 3*chunkSize + 1, 4 * chunkSize} {
				r := newImage(n)
				if !c.told {
					r.size = backends.UnknownSize
				}
				calls := 0
				r.setFault(func(int64, int64) fault {
					if calls++; calls == 1 {
						return fault{cut: unavailable(), after: int64(n / 2)}
					}
					return fault{}
				})
				rec := r.rec()
				rec.Size = backends.UnknownSize
				learned := make(chan int64, 10)
				s := openStore(t, t.TempDir(), c.set(r), func(o *StoreOptions) {
					o.Learn = func(_ backends.Record, size int64, _ backends.Digest) { learned <- size }
				})
				b := mustOpen(t, s, rec)
				if b.Size() != int64(n) {
					t.Fatalf("size %d, want %d", b.Size(), n)
				}
				mustRead(t, b, r.data, n/2, n-n/2)
				mustWait(t, b)
				if got := <-learned; got != int64(n) {
					t.Fatalf("learned %d", got)
				}
				b.Close()
			}
		})
	}
}

// A size that no image has must not cost the memory of its chunk map: a server
// that states 1<<60 bytes ended the whole mount.
func TestAbsurdSizesAreRefused(t *testing.T) {
	for name, size := range map[string]int64{"record": 1 << 60, "response": backends.UnknownSize} {
		for _, ranges := range []bool{true, false} {
			r := newImage(4 * chunkSize)
			r.size = 1 << 60
			set := r.plain()
			if ranges {
				set = r.ranged()
			}
			rec := r.rec()
			rec.Size = size
			s := openStore(t, t.TempDir(), set)
			if _, err := s.Open(t.Context(), rec); backends.KindOf(err) != backends.Corrupt {
				t.Errorf("%s, ranges %v: %v, want corrupt", name, ranges, err)
			}
		}
	}
}

func TestRangesTurnOutUnsupported(t *testing.T) {
	r := newImage(8 * chunkSize)
	r.setFault(func(_, n int64) fault {
		if n < int64(len(r.data)) {
			return fault{err: backends.Errorf("test", backends.Ref{}, backends.Unsupported, "no ranges")}
		}
		return fault{}
	})
	s := openStore(t, t.TempDir(), r.ranged())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	mustRead(t, b, r.data, 3*chunkSize, 2*chunkSize)
	mustWait(t, b)
	if opens, _ := r.counts(); opens != 1 {
		t.Errorf("%d downloads", opens)
	}
}

func TestDownloadOutlivesItsReader(t *testing.T) {
	dir := t.TempDir()
	r := newImage(8 * chunkSize)
	gate := make(chan struct{})
	r.setFault(func(int64, int64) fault { return fault{gate: gate} })
	s := openStore(t, dir, r.plain())
	mustOpen(t, s, r.rec()).Close()
	close(gate)
	for i := 0; ; i++ {
		if _, _, ok := s.Cached(r.rec()); ok {
			break
		}
		if i == 1000 {
			t.Fatal("the download did not go on")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if opens, _ := r.counts(); opens != 1 {
		t.Errorf("%d downloads", opens)
	}
}

func TestLocalFilesAreReadInPlace(t *testing.T) {
	r := newImage(3*chunkSize + 3)
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, r.data, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	set := r.ranged()
	set.Local = localFile(path)
	s := openStore(t, dir, set)
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	mustRead(t, b, r.data, 0, len(r.data))
	if used, _ := s.Usage(); used != 0 || r.read.Load() != 0 || !b.Complete() {
		t.Errorf("a local image was copied: %d bytes", used)
	}
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	_, err := b.ReadAt(t.Context(), make([]byte, 100), 0)
	wantKind(t, err, backends.Stale)
}

type localFile string

func (l localFile) OpenLocal(context.Context, backends.Record) (*os.File, error) {
	return os.Open(string(l))
}

func TestAdopt(t *testing.T) {
	dir := t.TempDir()
	r := newImage(3*chunkSize + 3)
	s := openStore(t, dir, r.ranged())
	staged := filepath.Join(dir, "staged")
	if err := os.WriteFile(staged, r.data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(r.rec(), staged, r.sum()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(staged); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the staged file is still there: %v", err)
	}
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	mustRead(t, b, r.data, 0, len(r.data))
	if r.read.Load() != 0 {
		t.Error("adopted bytes were fetched")
	}
}

func TestCloseReleasesEverything(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	before := descriptors(t)
	for _, set := range []func(*oneImage) backends.Set{(*oneImage).ranged, (*oneImage).plain} {
		r := newImage(50 * chunkSize)
		r.setFault(func(off, n int64) fault { return fault{stall: true, after: n / 2} })
		s := openStore(t, t.TempDir(), set(r))
		b := mustOpen(t, s, r.rec())
		done := make(chan error)
		go func() {
			_, err := b.ReadAt(t.Context(), make([]byte, 10), 49*chunkSize)
			done <- err
		}()
		for r.read.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		closeStore(t, s)
		if err := <-done; err == nil {
			t.Error("a read of bytes that never came succeeded")
		}
		_, err := b.ReadAt(t.Context(), make([]byte, 10), 49*chunkSize)
		wantKind(t, err, backends.Unavailable)
		b.Close()
		_, err = s.Open(t.Context(), r.rec())
		wantKind(t, err, backends.Unavailable)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestForeignDirectoryIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a directory away")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "blobs"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, "blobs"), 12345, 12345); err != nil {
		t.Fatal(err)
	}
	_, err := NewStore(StoreOptions{Dir: dir, Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("blobs/ of another user: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Lchown(link, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if _, err := NewStore(StoreOptions{Dir: link, Log: slog.New(slog.DiscardHandler), Now: time.Now}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a link of another user: %v", err)
	}
}
