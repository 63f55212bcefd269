package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sregistry/sregistry-fs/backends"
)

var toolRef = backends.Ref{Collection: "vsoch", Image: "tool", Tag: "1.2"}

func newStage(t *testing.T, dir string, now func() time.Time) *Stage {
	t.Helper()
	s, err := NewStage(StageOptions{Dir: dir, Registry: "mem:test", Log: slog.New(slog.DiscardHandler), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustCreate(t *testing.T, s *Stage, name string, ref backends.Ref) *Staged {
	t.Helper()
	f, err := s.Create(name, ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func mustFreeze(t *testing.T, f *Staged, want []byte) *Frozen {
	t.Helper()
	z, err := f.Freeze(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(want)
	if z.Size() != int64(len(want)) || z.Digest() != backends.SHA256(sum[:]) {
		t.Fatalf("frozen as %d bytes %v, want %d bytes %x", z.Size(), z.Digest(), len(want), sum)
	}
	got, err := io.ReadAll(io.NewSectionReader(z, 0, z.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("frozen bytes differ from those written (%v)", err)
	}
	return z
}

// TestStageDigest writes in the orders that tools write, and compares with
// a plain slice; the digest must never be that of an intermediate state.
func TestStageDigest(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := newStage(t, t.TempDir(), time.Now)
	rng := rand.New(rand.NewPCG(1, 2))
	piece := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		return p
	}
	type op struct {
		off  int64
		data []byte // nil: truncate to off
	}
	var sequential, headerLast, backwards, mixed []op
	for i := range int64(64) {
		sequential = append(sequential, op{i * 131072, piece(131072)})
		backwards = append(backwards, op{(63 - i) * 65536, piece(65536)})
	}
	headerLast = append(append(headerLast, sequential...), op{0, piece(4096)})
	for range 300 {
		if rng.IntN(10) == 0 {
			mixed = append(mixed, op{rng.Int64N(4 << 20), nil})
		} else {
			mixed = append(mixed, op{rng.Int64N(4 << 20), piece(1 + rng.IntN(200000))})
		}
	}
	for name, ops := range map[string][]op{
		"empty": nil, "sequential": sequential, "header last": headerLast, "backwards": backwards, "mixed": mixed,
		"hole":   {{8 << 20, piece(10)}},
		"shrunk": append(append([]op{}, sequential...), op{3 << 20, nil}, op{5 << 20, piece(5)}),
	} {
		t.Run(name, func(t *testing.T) {
			f := mustCreate(t, s, "", toolRef)
			defer f.Close()
			var want []byte
			for _, o := range ops {
				end := o.off + int64(len(o.data))
				if grow := end - int64(len(want)); grow > 0 {
					want = append(want, make([]byte, grow)...)
				}
				if o.data == nil {
					want = want[:o.off]
					if err := f.Truncate(o.off); err != nil {
						t.Fatal(err)
					}
					continue
				}
				copy(want[o.off:], o.data)
				if n, err := f.WriteAt(o.data, o.off); n != len(o.data) || err != nil {
					t.Fatal(n, err)
				}
			}
			if f.Size() != int64(len(want)) {
				t.Fatalf("size %d, want %d", f.Size(), len(want))
			}
			mustFreeze(t, f, want)
			if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, ErrFrozen) {
				t.Errorf("write after freeze: %v", err)
			}
			if err := f.Truncate(0); !errors.Is(err, ErrFrozen) {
				t.Errorf("truncate after freeze: %v", err)
			}
			mustFreeze(t, f, want) // again
			f.Thaw()
			if _, err := f.WriteAt([]byte("more"), int64(len(want))); err != nil {
				t.Fatal(err)
			}
			want = append(want, "more"...)
			mustFreeze(t, f, want)
			f.Thaw()
			if _, err := f.WriteAt([]byte("M"), 0); err != nil {
				t.Fatal(err)
			}
			want[0] = 'M'
			mustFreeze(t, f, want)
		})
	}
}

// TestStageConcurrent freezes while others write: the digest is that of the
// bytes which the source gives.
func TestStageConcurrent(t *testing.T) {
	s := newStage(t, t.TempDir(), time.Now)
	f := mustCreate(t, s, "", toolRef)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			buf := bytes.Repeat([]byte{byte(w + 1)}, 100_000)
			for i := range int64(100) {
				if _, err := f.WriteAt(buf, i*90_000); err != nil {
					if !errors.Is(err, ErrFrozen) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	for range 3 {
		z, err := f.Freeze(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(z, 0, z.Size())); err != nil {
			t.Fatal(err)
		}
		if backends.SHA256(h.Sum(nil)) != z.Digest() {
			t.Fatal("digest is not that of the frozen bytes")
		}
		f.Thaw()
	}
	wg.Wait()
}

func TestStageFreezeCancelled(t *testing.T) {
	s := newStage(t, t.TempDir(), time.Now)
	f := mustCreate(t, s, "", toolRef)
	data := bytes.Repeat([]byte("abc"), 1_000_000)
	f.WriteAt(data, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Freeze(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("freeze with a cancelled context: %v", err)
	}
	if _, err := f.WriteAt([]byte("X"), 1); err != nil {
		t.Fatalf("write after a freeze that failed: %v", err)
	}
	data[1] = 'X'
	mustFreeze(t, f, data)
}

// TestStageLife follows entries through restarts: who is live, what is known,
// what is swept.
func TestStageLife(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s := newStage(t, dir, clock)
	img := mustCreate(t, s, "", toolRef)
	img.WriteAt([]byte("image"), 0)
	scratch := mustCreate(t, s, ".rsync.tmp", backends.Ref{})
	scratch.WriteAt([]byte("scratch"), 0)

	other := newStage(t, dir, clock) // as another process would see it
	list, err := other.List()
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for _, e := range list {
		if !e.Live || e.State != StageWriting || e.PID != os.Getpid() || e.Registry != "mem:test" {
			t.Errorf("%+v", e)
		}
		if _, err := other.Open(e.ID); !errors.Is(err, ErrStagedInUse) {
			t.Errorf("took over a live entry: %v", err)
		}
	}
	z := mustFreeze(t, img, []byte("image"))
	if err := img.Fail(backends.Errorf("push", toolRef, backends.Quota, "no room")); err != nil {
		t.Fatal(err)
	}
	img.Close()
	scratch.Close()

	now = now.Add(ScratchLife + time.Hour)
	later := newStage(t, dir, clock)
	list, err = later.List()
	if err != nil || len(list) != 1 {
		t.Fatal("scratch should be gone and the image kept:", list, err)
	}
	e := list[0]
	if e.Live || e.Ref != toolRef || e.State != StageFailed || e.Digest != z.Digest() || e.Size != 5 ||
		!strings.Contains(e.Reason, "over quota") || e.Path != img.Path() {
		t.Errorf("%+v", e)
	}
	again, err := later.Open(e.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Ref() != toolRef || again.Size() != 5 {
		t.Error(again.Ref(), again.Size())
	}
	mustFreeze(t, again, []byte("image"))
	if err := again.Drop(); err != nil {
		t.Fatal(err)
	}
	if list, _ := later.List(); len(list) != 0 {
		t.Error("dropped but listed:", list)
	}
	got := make([]byte, 5)
	if _, err := again.ReadAt(got, 0); err != nil || string(got) != "image" {
		t.Errorf("an open handle reads on after drop: %q %v", got, err)
	}
	if err := again.Sync(); err != nil {
		t.Errorf("sync after drop: %v", err)
	}
	left, _ := os.ReadDir(filepath.Join(dir, "stage"))
	if len(left) != 0 {
		t.Error("left behind:", left)
	}
	if _, err := later.Open(e.ID); backends.KindOf(err) != backends.NotFound {
		t.Error(err)
	}
	if _, err := later.Open("../../etc"); backends.KindOf(err) != backends.NotFound {
		t.Error(err)
	}
}

func TestStageRename(t *testing.T) {
	s := newStage(t, t.TempDir(), time.Now)
	f := mustCreate(t, s, "x.tmp", backends.Ref{})
	if err := f.SetRef(backends.Ref{Collection: "vsoch"}); backends.KindOf(err) != backends.Invalid {
		t.Error(err)
	}
	if err := f.SetRef(toolRef); err != nil {
		t.Fatal(err)
	}
	if list, _ := s.List(); f.Name() != "" || f.Ref() != toolRef || list[0].Ref != toolRef || list[0].Name != "" {
		t.Errorf("%+v", list)
	}
	if err := f.SetName("y~"); err != nil {
		t.Fatal(err)
	}
	if list, _ := s.List(); f.Ref() != (backends.Ref{}) || list[0].Name != "y~" {
		t.Errorf("%+v", list)
	}
	if _, err := s.Create("", backends.Ref{Collection: "a", Image: "..", Tag: "x"}); backends.KindOf(err) != backends.Invalid {
		t.Error("staged an impossible name:", err)
	}
}

// TestStageDamage damages journals: the bytes are never dropped for it.
func TestStageDamage(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	s := newStage(t, dir, func() time.Time { return now })
	for _, damage := range []string{"", "{", `{"state":"frozen"}`, `{"state":"bad","name":"x"}`, `{"state":"writing","ref":{"collection":"..","image":"x","tag":"y"}}`} {
		f := mustCreate(t, s, ".scratch", backends.Ref{})
		f.WriteAt([]byte("bytes"), 0)
		f.Close()
		if err := os.WriteFile(filepath.Join(filepath.Dir(f.Path()), stageJournal), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		now = now.Add(2 * ScratchLife)
		s.Sweep()
		list, err := s.List()
		if err != nil || len(list) != 1 || list[0].State != StageDamaged || list[0].Size != 5 {
			t.Fatalf("journal %q: %+v %v", damage, list, err)
		}
		f, err = s.Open(list[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.SetRef(toolRef); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if list, _ = s.List(); list[0].Ref != toolRef || list[0].State != StageWriting {
			t.Errorf("journal %q: not repaired: %+v", damage, list)
		}
		if err := f.Drop(); err != nil { // after Close
			t.Fatal(err)
		}
	}
}

func TestStageRefusesOthersDirectories(t *testing.T) {
	opt := StageOptions{Registry: "mem:", Log: slog.New(slog.DiscardHandler), Now: time.Now}
	opt.Dir = t.TempDir()
	elsewhere := t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(opt.Dir, "stage")); err != nil {
		t.Fatal(err)
	}
	if _, err := NewStage(opt); err == nil {
		t.Error("followed a symbolic link")
	}
	if os.Geteuid() == 0 {
		opt.Dir = t.TempDir()
		os.Chown(opt.Dir, 12345, -1)
		if _, err := NewStage(opt); backends.KindOf(err) != backends.Denied {
			t.Errorf("foreign owner: %v", err)
		}
	}
	// A data file that is a link out of the stage is never opened or followed.
	opt.Dir = t.TempDir()
	s, err := NewStage(opt)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f := mustCreate(t, s, "", toolRef)
	f.Close()
	victim := filepath.Join(elsewhere, "victim")
	os.WriteFile(victim, []byte("precious"), 0o600)
	os.Remove(f.Path())
	os.Symlink(victim, f.Path())
	if _, err := s.Open(f.ID()); err == nil {
		t.Error("opened a link out of the stage")
	}
	f.Drop()
	if got, _ := os.ReadFile(victim); string(got) != "precious" {
		t.Error("the link's target was touched")
	}
}

// TestStageModes: nobody else can read what is staged.
func TestStageModes(t *testing.T) {
	dir := t.TempDir()
	s := newStage(t, dir, time.Now)
	mustCreate(t, s, "", toolRef)
	filepath.WalkDir(filepath.Join(dir, "stage"), func(p string, d os.DirEntry, _ error) error {
		info, err := d.Info()
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", p, info.Mode(), err)
		}
		return nil
	})
}

// TestStageFull fills a real file system: the errno survives, and what was
// written before can still be dropped.
func TestStageFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=0700"); err != nil {
		t.Skip("no tmpfs:", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	s := newStage(t, dir, time.Now)
	f := mustCreate(t, s, "", toolRef)
	n, err := f.WriteAt(make([]byte, 4<<20), 0)
	if !errors.Is(err, syscall.ENOSPC) || f.Size() != int64(n) {
		t.Fatalf("%d bytes, size %d: %v", n, f.Size(), err)
	}
	if _, err := s.Create("", toolRef); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("create on a full disk: %v", err)
	}
	if err := f.Drop(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	mustCreate(t, s, "", toolRef)
}

// TestStageKilled: another process is killed while it writes; its bytes are
// listed as not live, and can be taken over.
func TestStageKilled(t *testing.T) {
	if dir := os.Getenv("STAGE_CHILD"); dir != "" {
		s := newStage(t, dir, time.Now)
		f, err := s.Create("", toolRef)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte("written before the kill"), 0)
		os.Stdout.WriteString("ready\n")
		select {}
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestStageKilled$")
	cmd.Env = append(os.Environ(), "STAGE_CHILD="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	s := newStage(t, dir, time.Now)
	if list, _ := s.List(); len(list) != 1 || !list[0].Live {
		t.Errorf("while it lives: %+v", list)
	}
	cmd.Process.Kill()
	cmd.Wait()
	list, _ := s.List()
	if len(list) != 1 || list[0].Live || list[0].Ref != toolRef {
		t.Fatalf("after the kill: %+v", list)
	}
	f, err := s.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mustFreeze(t, f, []byte("written before the kill"))
}
