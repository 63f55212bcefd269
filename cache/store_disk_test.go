package cache

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestEvictionKeepsTheBound(t *testing.T) {
	dir := t.TempDir()
	images := make([]*oneImage, 6)
	const each = 8 * chunkSize
	var s *Store
	for i := range images {
		images[i] = newImage(each + i)
		now := time.Now().Add(time.Duration(i) * time.Hour)
		s = openStore(t, dir, images[i].ranged(), func(o *StoreOptions) {
			o.MaxBytes, o.Registry = 3*each+chunkSize, string(rune('a'+i))
			o.Now = func() time.Time { return now }
		})
		b := mustOpen(t, s, images[i].rec())
		mustWait(t, b)
		if i == 0 {
			if err := s.SetPin(images[i].rec(), true); err != nil || !s.Pinned(images[i].rec()) {
				t.Fatalf("pin: %v", err)
			}
		}
		if i == 1 { // stays open
			defer b.Close()
		} else {
			b.Close()
			closeStore(t, s)
		}
	}
	s = openStore(t, dir, images[0].ranged(), func(o *StoreOptions) { o.MaxBytes = 3*each + chunkSize })
	if used, limit := s.Usage(); used > limit {
		t.Errorf("%d bytes of %d", used, limit)
	}
	for i, want := range []bool{true, true, false, false, false, true} {
		_, err := os.Stat(filepath.Join(dir, blobDir, images[i].sum().Hex))
		if got := err == nil; got != want {
			t.Errorf("image %d kept: %v, want %v", i, got, want)
		}
	}
}

func TestUnfinishedImagesAreEvictedAndSwept(t *testing.T) {
	dir := t.TempDir()
	r := newImage(20 * chunkSize)
	s := openStore(t, dir, r.ranged())
	b := mustOpen(t, s, r.rec())
	mustRead(t, b, r.data, 0, 10)
	if err := s.evict(t.Context(), 1, 0); err != nil {
		t.Fatal(err)
	}
	if used, _ := s.Usage(); used == 0 {
		t.Fatal("an open image was evicted")
	}
	b.Close()
	closeStore(t, s)
	s = openStore(t, dir, r.ranged())
	if used, _ := s.Usage(); used == 0 {
		t.Fatal("an unfinished image was not kept")
	}
	closeStore(t, s)
	if err := os.MkdirAll(filepath.Join(dir, partialDir, strings.Repeat("a", 64)+"-1-2"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, partialDir, strings.Repeat("a", 64)+"-1-2", "lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir, r.ranged(), func(o *StoreOptions) {
		o.Now = func() time.Time { return time.Now().Add(31 * 24 * time.Hour) }
	})
	for range 1000 {
		if left, _ := os.ReadDir(filepath.Join(dir, partialDir)); len(left) == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("dead partial files were not swept")
}

func TestAnImageBeyondTheBoundIsStillReadable(t *testing.T) {
	r := newImage(1200 * chunkSize)
	s := openStore(t, t.TempDir(), r.ranged(), func(o *StoreOptions) { o.MaxBytes = 16 * chunkSize })
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	for off := 0; off < len(r.data); off += chunkSize {
		mustRead(t, b, r.data, off, chunkSize)
	}
	// What is under way when the bound is noticed still lands.
	const underWay = 4 << 20
	if used, limit := s.Usage(); used > limit+underWay {
		t.Errorf("%d bytes of %d", used, limit)
	}
}

func TestDamagedBlobIsFetchedAgain(t *testing.T) {
	for name, damage := range map[string]func(*os.File) error{
		"flip": func(f *os.File) error { _, err := f.WriteAt([]byte{1, 2, 3}, 1000); return err },
		"cut":  func(f *os.File) error { return f.Truncate(5) },
		"more": func(f *os.File) error { _, err := f.WriteAt([]byte{1}, 10*chunkSize); return err },
	} {
		for _, linked := range []bool{true, false} {
			dir := t.TempDir()
			r := newImage(3 * chunkSize)
			rec := r.rec()
			rec.Digest = r.sum()
			s := openStore(t, dir, r.ranged())
			b := mustOpen(t, s, rec)
			mustWait(t, b)
			b.Close()
			closeStore(t, s)
			blob := filepath.Join(dir, blobDir, r.sum().Hex)
			if err := os.Chmod(blob, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(blob, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(damage(f), f.Close()); err != nil {
				t.Fatal(err)
			}
			if !linked {
				rec.Tag = "other"
			}
			s = openStore(t, dir, r.ranged())
			if _, _, ok := s.Cached(rec); ok {
				t.Errorf("%s: a damaged blob counts as cached", name)
			}
			b = mustOpen(t, s, rec)
			mustRead(t, b, r.data, 0, len(r.data))
			mustWait(t, b)
			b.Close()
			if left, _ := os.ReadDir(filepath.Join(dir, damagedDir)); len(left) != 1 {
				t.Errorf("%s: %d damaged files kept", name, len(left))
			}
		}
	}
}

func TestATouchedBlobIsCheckedAndKept(t *testing.T) {
	dir := t.TempDir()
	r := newImage(3 * chunkSize)
	s := openStore(t, dir, r.ranged())
	b := mustOpen(t, s, r.rec())
	mustWait(t, b)
	b.Close()
	closeStore(t, s)
	blob := filepath.Join(dir, blobDir, r.sum().Hex)
	if err := os.Chtimes(blob, time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, r.ranged())
	b = mustOpen(t, s, r.rec())
	defer b.Close()
	if !b.Complete() || r.read.Load() != int64(len(r.data)) {
		t.Error("a blob that was only touched was fetched again")
	}
	if _, _, ok := s.Cached(r.rec()); !ok {
		t.Error("the check was not noted")
	}
}

func TestDamagedPartialIsNeverServed(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"data":  func(dir string) error { return poke(filepath.Join(dir, "data"), 2*chunkSize+100) },
		"entry": func(dir string) error { return poke(filepath.Join(dir, "map"), mapHeader+2*mapEntry) },
		"head":  func(dir string) error { return poke(filepath.Join(dir, "map"), 30) },
		"cut":   func(dir string) error { return os.Truncate(filepath.Join(dir, "data"), 2*chunkSize+5) },
		"gone":  func(dir string) error { return os.Remove(filepath.Join(dir, "data")) },
		"swapped": func(dir string) error {
			raw, err := os.ReadFile(filepath.Join(dir, "map"))
			if err != nil {
				return err
			}
			copy(raw[mapHeader+4*mapEntry:], raw[mapHeader+2*mapEntry:][:mapEntry])
			return os.WriteFile(filepath.Join(dir, "map"), raw, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			r := newImage(10 * chunkSize)
			s := openStore(t, dir, r.ranged())
			b := mustOpen(t, s, r.rec())
			mustRead(t, b, r.data, chunkSize, 3*chunkSize)
			b.Close()
			closeStore(t, s)
			parts, _ := filepath.Glob(filepath.Join(dir, partialDir, "*"))
			if len(parts) != 1 {
				t.Fatalf("partial files: %v", parts)
			}
			if err := damage(parts[0]); err != nil {
				t.Fatal(err)
			}
			s = openStore(t, dir, r.ranged())
			b = mustOpen(t, s, r.rec())
			defer b.Close()
			mustRead(t, b, r.data, 0, len(r.data))
			mustWait(t, b)
		})
	}
}

func poke(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	b[0] ^= 0x55
	_, werr := f.WriteAt(b[:], at)
	return errors.Join(err, werr, f.Close())
}

// smallDisk mounts a tmpfs of size bytes.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, options+",mode=700"); err != nil {
		t.Skipf("no tmpfs of its own: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullDisk(t *testing.T) {
	for name, options := range map[string]string{"bytes": "size=2m", "inodes": "size=64m,nr_inodes=9"} {
		t.Run(name, func(t *testing.T) {
			r := newImage(40 * chunkSize)
			dir := smallDisk(t, options)
			var now sync.Mutex
			clock := time.Now()
			var logged countLines
			s := openStore(t, dir, r.ranged(), func(o *StoreOptions) {
				o.Log = slog.New(slog.NewTextHandler(&logged, nil))
				o.Now = func() time.Time { now.Lock(); defer now.Unlock(); return clock }
			})
			b := mustOpen(t, s, r.rec())
			for off := 0; off < len(r.data); off += 100_000 {
				mustRead(t, b, r.data, off, min(100_000, len(r.data)-off))
			}
			var errno syscall.Errno
			if err := b.Wait(t.Context(), nil); !errors.As(err, &errno) || errno != syscall.ENOSPC {
				t.Errorf("Wait on a full disk: %v", err)
			}
			if n := logged.count(); n != 1 {
				t.Errorf("%d log lines", n)
			}
			// It recovers by itself once there is space.
			if err := unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT, "size=64m,nr_inodes=1000,mode=700"); err != nil {
				t.Fatal(err)
			}
			now.Lock()
			clock = clock.Add(time.Minute)
			now.Unlock()
			if name == "inodes" {
				b.Close() // nothing could be made; the next open can
				b = mustOpen(t, s, r.rec())
			}
			mustWait(t, b)
			b.Close()
			closeStore(t, s)
			if used, _ := descriptorsIn(dir); used != 0 {
				t.Errorf("%d descriptors are left", used)
			}
		})
	}
}

func descriptorsIn(dir string) (n int, err error) {
	names, err := os.ReadDir("/proc/self/fd")
	for _, e := range names {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, dir) {
			n++
		}
	}
	return n, err
}

type countLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *countLines) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *countLines) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Count(c.b.Bytes(), []byte("\n"))
}

func TestFullDiskWithoutRanges(t *testing.T) {
	r := newImage(40 * chunkSize)
	s := openStore(t, smallDisk(t, "size=2m"), r.plain())
	b := mustOpen(t, s, r.rec())
	defer b.Close()
	mustRead(t, b, r.data, 0, chunkSize)
	_, err := b.ReadAt(t.Context(), make([]byte, 10), 39*chunkSize)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a read of what does not fit: %v", err)
	}
	mustRead(t, b, r.data, 0, chunkSize)
}

func TestFullDiskEvictsFirst(t *testing.T) {
	dir := smallDisk(t, "size=24m")
	for i := range 4 {
		r := newImage(80*chunkSize + i)
		s := openStore(t, dir, r.ranged(), func(o *StoreOptions) { o.Registry = string(rune('a' + i)) })
		b := mustOpen(t, s, r.rec())
		mustWait(t, b)
		b.Close()
		closeStore(t, s)
	}
}

func TestNothingGoesOutOfTheDirectory(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	r := newImage(2 * chunkSize)
	s := openStore(t, dir, r.ranged())
	key := versionKey("test:", r.rec())
	for _, name := range []string{filepath.Join(partialDir, key), filepath.Join(linkDir, key)} {
		if err := os.Symlink(filepath.Join(outside, "x"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	b := mustOpen(t, s, r.rec())
	mustRead(t, b, r.data, 0, len(r.data))
	b.Close()
	closeStore(t, s)
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("written outside: %v", left)
	}
}
