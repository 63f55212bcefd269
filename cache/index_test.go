package cache

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

func openIndex(t *testing.T, dir string, log *strings.Builder) *Index {
	t.Helper()
	x, err := OpenIndex(dir, "mem:test", slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

func indexFile(t *testing.T, dir string, slot int) string {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, "*", fmt.Sprintf("%d.db", slot)))
	if len(names) != 1 {
		t.Fatal(names)
	}
	return names[0]
}

func TestIndexKeeps(t *testing.T) {
	dir, log := t.TempDir(), &strings.Builder{}
	x := openIndex(t, dir, log)
	at := time.Unix(1e9, 7)
	check := func(when string, x *Index) {
		t.Helper()
		v, got, ok := x.get("b", "k")
		if !ok || string(v) != "value" || !got.Equal(at) {
			t.Errorf("%s: %q %v %v", when, v, got, ok)
		}
		if _, _, ok := x.get("b", "gone"); ok {
			t.Error(when, "deleted but there")
		}
		if all := x.scan("b", "p/"); len(all) != 2 || all[0].key != "p/1" || string(all[1].value) != "two" {
			t.Error(when, all)
		}
	}
	x.put("b", "k", at, []byte("old"))
	x.put("b", "gone", at, []byte("x"))
	x.put("b", "p/1", at, nil)
	x.Flush()
	x.put("b", "k", at, []byte("value"))
	x.put("b", "p/2", at, []byte("two"))
	x.put("b", "q", at, []byte("two"))
	x.del("b", "gone")
	check("before the flush", x)
	x.Flush()
	check("after the flush", x)

	// A second mount has its own slot; a remount finds the first.
	y := openIndex(t, dir, log)
	if _, _, ok := y.get("b", "k"); ok {
		t.Error("two mounts share one index")
	}
	indexFile(t, dir, 1)
	x.Close()
	check("after a remount", openIndex(t, dir, log))
	if log.Len() > 0 {
		t.Error(log)
	}
}

func TestIndexPrune(t *testing.T) {
	x := openIndex(t, t.TempDir(), &strings.Builder{})
	for i := range 100 {
		x.put("b", fmt.Sprint(i), time.Unix(int64(i), 0), make([]byte, 100))
	}
	x.Flush()
	x.prune("b", 50, 1<<20)
	if all := x.scan("b", ""); len(all) != 50 || all[0].key != "50" {
		t.Error(len(all), all[0].key)
	}
	x.Flush()
	x.prune("b", 50, 1000)
	if n := len(x.scan("b", "")); n < 5 || n > 10 {
		t.Error(n, "entries of 100 bytes within 1000")
	}
}

// TestIndexFull: a disk that is full costs a log line and no memory of this run.
func TestIndexFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skip("no tmpfs:", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	log := &strings.Builder{}
	x := openIndex(t, dir, log)
	x.put("b", "small", time.Now(), []byte("kept"))
	x.Flush()
	x.put("b", "large", time.Now(), make([]byte, 2<<20))
	x.Flush()
	x.Flush()
	for _, key := range []string{"small", "large"} {
		if _, _, ok := x.get("b", key); !ok {
			t.Error(key, "is forgotten")
		}
	}
	if n := strings.Count(log.String(), "could not be written"); n != 1 {
		t.Errorf("logged %d times: %s", n, log)
	}
	x.del("b", "large")
	x.Close()
	if _, _, ok := openIndex(t, dir, log).get("b", "small"); !ok {
		t.Error("lost what was written before the disk was full")
	}

	// No index at all: memory does.
	filler, _ := os.Create(filepath.Join(dir, "filler"))
	for n := 1 << 20; n > 0; n /= 2 {
		filler.Write(make([]byte, n))
	}
	filler.Close()
	y := openIndex(t, dir, log) // slot 1
	y.put("b", "k", time.Now(), []byte("v"))
	y.Flush()
	if _, _, ok := y.get("b", "k"); !ok {
		t.Error("a full disk keeps memory from working")
	}
}

func TestIndexForeignDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a directory away")
	}
	dir := t.TempDir()
	os.Chown(dir, 12345, -1)
	if _, err := OpenIndex(dir, "mem:", slog.New(slog.DiscardHandler)); backends.KindOf(err) != backends.Denied {
		t.Error(err)
	}
}

// damage changes an index file in one of several ways, and says how.
func damage(rng *rand.Rand, data []byte, i int) string {
	switch {
	case i%5 == 1:
		from := rng.IntN(len(data))
		to := min(len(data), from+1+rng.IntN(4096))
		clear(data[from:to])
		return fmt.Sprintf("zeros in %d-%d", from, to)
	case i%5 == 2:
		page := rng.IntN(len(data)/4096) * 4096
		other := rng.IntN(len(data)/4096) * 4096
		copy(data[page:page+4096], data[other:other+4096])
		return fmt.Sprintf("page %d over page %d", other/4096, page/4096)
	case i%5 == 3: // the part of a page that holds its structure
		at := rng.IntN(len(data)/4096)*4096 + rng.IntN(64)
		data[at] ^= 1 << rng.IntN(8)
		return fmt.Sprintf("bit in header byte %d", at)
	default:
		at := rng.IntN(len(data))
		data[at] ^= 1 << rng.IntN(8)
		return fmt.Sprintf("bit in byte %d", at)
	}
}

// TestIndexDamage damages the file in many ways, at rest and under a running
// mount: never a crash, never a record that the registry did not give, and a
// working index afterwards.
func TestIndexDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, mem.Options{NoTree: true})
		b.ttl = 24 * time.Hour
		for c := range 40 {
			for i := range 30 {
				name := fmt.Sprintf("coll%d/image%d:1", c, i)
				b.reg.Put(ref(name), []byte(name))
			}
		}
		b.remount()
		b.Refresh(t.Context(), "")
		names, _ := b.Collections(t.Context())
		for _, name := range names {
			b.ls(name)
		}
		for i := range 300 { // overlays, so that the tree has branches
			name := fmt.Sprintf("coll%d/pushed%d:1", i%40, i)
			rec := b.reg.Put(ref(name), []byte(name))
			b.mu.Lock()
			b.learnOwn(rec, false)
			b.mu.Unlock()
		}
		b.Close()
		path := indexFile(t, b.dir, 0)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		right := func(what string) {
			t.Helper()
			names, err := b.Collections(t.Context())
			if err != nil {
				t.Fatal(what, err)
			}
			for _, name := range names {
				recs, err := b.Images(t.Context(), name)
				if err != nil {
					t.Fatal(what, err)
				}
				for _, r := range recs {
					if want, err := b.reg.Stat(t.Context(), r.Ref); err != nil || r.Version != want.Version || r.Size != want.Size {
						t.Fatalf("%s: %v, want %v %v", what, r, want, err)
					}
				}
			}
		}
		found := 0
		for i := range 150 {
			data := append([]byte{}, whole...)
			if i%10 == 9 {
				data = data[:rng.IntN(len(data))]
			}
			what := "cut to " + fmt.Sprint(len(data))
			if len(data) == len(whole) {
				what = damage(rng, data, i)
			}
			b.log.Reset()
			atRest := i%2 == 0
			if atRest {
				os.WriteFile(path, data, 0o600)
				b.open()
			} else {
				os.WriteFile(path, whole, 0o600)
				b.open()
				overwrite(t, path, data)
			}
			right(what)
			b.Learn(backends.Record{Ref: ref("coll1/image1:1"), Version: "x"}, int64(i), backends.Digest{})
			b.Push(t.Context(), ref("coll1/new:1"), source(fmt.Sprint(i)), nil)
			right(what)
			b.reg.Remove(ref("coll1/new:1")) // as in the file that the next round damages
			b.Close()
			if strings.Contains(b.log.String(), "damaged index was set aside") {
				found++
				if aside, _ := filepath.Glob(path + ".damaged-*"); len(aside) != 1 {
					t.Fatal("kept aside:", aside)
				}
			}
		}
		t.Logf("damage was found in %d of 150 files", found)
		if found < 30 {
			t.Error("this test damages too little to show anything")
		}
	})
}

// overwrite changes a file in place, as a failing disk would.
func overwrite(t *testing.T, path string, data []byte) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteAt(data, 0)
	f.Truncate(int64(len(data)))
}
