package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/backendtest"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

// bench is a catalog over a registry in memory, whose calls are counted.
type bench struct {
	t     *testing.T
	dir   string
	reg   *mem.Registry
	set   backends.Set
	count *backendtest.Counts
	log   *strings.Builder
	ttl   time.Duration
	*Catalog
}

func ref(s string) backends.Ref {
	r, _, err := backends.ParseRef(s)
	if err != nil {
		panic(err)
	}
	return r
}

// newBench makes a registry with vsoch/hello:{latest,1}, vsoch/tool:latest and
// a/b/deep:latest. It is for use within synctest.
func newBench(t *testing.T, o mem.Options) *bench {
	b := &bench{t: t, dir: t.TempDir(), reg: mem.New(o), log: &strings.Builder{}, ttl: time.Minute}
	for _, name := range []string{"vsoch/hello:latest", "vsoch/hello:1", "vsoch/tool:latest", "a/b/deep:latest"} {
		b.reg.Put(ref(name), []byte(name))
	}
	b.set, b.count = backendtest.Counting(b.reg.Set())
	b.open()
	t.Cleanup(func() { b.Close() })
	return b
}

func (b *bench) open() {
	b.t.Helper()
	log := slog.New(slog.NewTextHandler(b.log, nil))
	index, err := OpenIndex(b.dir, "mem:test", log)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Catalog = NewCatalog(CatalogOptions{Registry: "mem:test", Backend: b.set, TTL: b.ttl, Index: index, Log: log, Now: time.Now})
}

// remount closes the catalog and opens it again on the same directory.
func (b *bench) remount() {
	b.t.Helper()
	if err := b.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.open()
}

// ls gives what ls shows, without the suffixes.
func (b *bench) ls(name string) string {
	b.t.Helper()
	recs, err := b.Images(context.Background(), name)
	if err != nil {
		b.t.Fatalf("ls %s: %v", name, err)
	}
	var all []string
	for _, r := range recs {
		all = append(all, strings.TrimSuffix(r.FileName(), backends.Suffix))
	}
	return strings.Join(all, " ")
}

func (b *bench) dirs() string {
	b.t.Helper()
	names, err := b.Collections(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.Join(names, " ")
}

func (b *bench) want(what, got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// asked checks the number of requests since the last call.
func (b *bench) asked(what string, n int) {
	b.t.Helper()
	if got := b.count.Calls(); got != n {
		b.t.Errorf("%s: %d requests, want %d: %v", what, got, n, b.count)
	}
	b.count.Reset()
}

func (b *bench) find(name string) (backends.Record, error) {
	return b.Find(context.Background(), ref(name))
}

func (b *bench) missing(name string) {
	b.t.Helper()
	if rec, err := b.find(name); !errors.Is(err, backends.NotFound) {
		b.t.Errorf("%s: found %v, %v", name, rec.Ref, err)
	}
}

func source(data string) *bytesSource { return &bytesSource{strings.NewReader(data)} }

type bytesSource struct{ *strings.Reader }

func (s *bytesSource) Size() int64 { return s.Reader.Size() }

func (s *bytesSource) Digest() backends.Digest {
	h := sha256.New()
	io.Copy(h, io.NewSectionReader(s, 0, s.Size()))
	return backends.SHA256(h.Sum(nil))
}

// eachKind runs f in a synctest bubble for each kind of listing.
func eachKind(t *testing.T, o mem.Options, f func(t *testing.T, b *bench)) {
	for _, noTree := range []bool{false, true} {
		o.NoTree = noTree
		t.Run(fmt.Sprintf("noTree=%v", noTree), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, newBench(t, o)) })
		})
	}
}

func TestCatalogBudgets(t *testing.T) {
	eachKind(t, mem.Options{Sparse: true}, func(t *testing.T, b *bench) {
		perList := 2 // collections, images
		if b.set.Tree != nil {
			perList = 1
		}
		ctx := context.Background()
		for range 3 {
			b.want("dirs", b.dirs(), "a/b vsoch")
			b.want("ls", b.ls("vsoch"), "hello:1 hello:latest tool:latest")
			rec, err := b.find("vsoch/hello:1")
			if err != nil || rec.Ref != ref("vsoch/hello:1") {
				t.Fatal(rec, err)
			}
		}
		b.asked("ls three times", perList)
		rec, _ := b.find("vsoch/hello:1")
		if rec.Full || rec.Size >= 0 {
			t.Fatal("the listing tells too much for this test")
		}
		for range 3 {
			full, err := b.Full(ctx, rec)
			if err != nil || !full.Full || full.Size != int64(len("vsoch/hello:1")) {
				t.Fatal(full, err)
			}
		}
		b.asked("getfattr three times", 1)
		b.remount()
		b.want("dirs", b.dirs(), "a/b vsoch")
		b.want("ls", b.ls("vsoch"), "hello:1 hello:latest tool:latest")
		if rec, _ := b.find("vsoch/hello:1"); !rec.Full {
			t.Error("the full record was forgotten")
		}
		b.asked("remount within TTL", 0)

		time.Sleep(b.ttl + time.Second)
		b.reg.Put(ref("vsoch/new:1"), []byte("new"))
		b.want("ls", b.ls("vsoch"), "hello:1 hello:latest new:1 tool:latest")
		if rec, _ := b.find("vsoch/hello:1"); !rec.Full {
			t.Error("a full record whose listing is the same was forgotten")
		}
		b.asked("ls after TTL", 1)

		b.reg.Put(ref("vsoch/hello:1"), []byte("moved tag"))
		time.Sleep(b.ttl + time.Second)
		if rec, _ := b.find("vsoch/hello:1"); rec.Full {
			t.Error("a full record of an old version outlives the listing that shows a new one")
		}
		b.asked("find after TTL", 1)

		if _, err := b.Images(ctx, "nowhere"); !errors.Is(err, backends.NotFound) {
			t.Error(err)
		}
	})
}
