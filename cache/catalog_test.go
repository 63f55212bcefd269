package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

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

// names gives what ls shows: "latest 3" and so on as file names.
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

// in runs f in a synctest bubble for each kind of listing.
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

func TestCatalogManyCallersOneRequest(t *testing.T) {
	eachKind(t, mem.Options{}, func(t *testing.T, b *bench) {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
				defer cancel()
				b.Images(ctx, "vsoch")
			})
		}
		wg.Wait()
		synctest.Wait()
		if n := b.count.Calls(); n > 2 {
			t.Errorf("%v", b.count)
		}
	})
}

// TestCatalogAbsent: names that no listing shows.
func TestCatalogAbsent(t *testing.T) {
	eachKind(t, mem.Options{MinListAge: 24 * time.Hour}, func(t *testing.T, b *bench) {
		b.ls("vsoch")
		b.dirs()
		b.count.Reset()
		for range 5 {
			b.missing("vsoch/absent")
		}
		b.asked("one absent name", 1)
		for i := range 100 {
			b.missing(fmt.Sprintf("vsoch/absent:%d", i))
			if has, err := b.HasCollection(t.Context(), fmt.Sprintf("none%d", i)); has || err != nil {
				t.Fatal(has, err)
			}
		}
		b.asked("a hundred absent names", absentBudget-1)
		time.Sleep(absentLife + time.Minute)
		b.missing("vsoch/absent")
		b.asked("an hour later", 1)

		// A name that appears is found, and costs nothing of the budget.
		for i := range 20 {
			name := fmt.Sprintf("vsoch/hidden:%d", i)
			b.reg.Put(ref(name), []byte(name))
			if _, err := b.find(name); err != nil {
				t.Fatal(name, err)
			}
		}
		b.asked("hidden names", 20)
		if got := b.ls("vsoch"); !strings.Contains(got, "hidden:19") {
			t.Error("what is known is not shown:", got)
		}
		b.remount()
		if got := b.ls("vsoch"); !strings.Contains(got, "hidden:19") {
			t.Error("what is known is not shown after a remount:", got)
		}
		for _, has := range []string{"vsoch", "a", "a/b"} {
			if ok, err := b.HasCollection(t.Context(), has); !ok || err != nil {
				t.Error(has, ok, err)
			}
		}
		if recs, err := b.Images(t.Context(), "a"); len(recs) != 0 || err != nil {
			t.Error("a parent has no images:", recs, err)
		}
		b.asked("what is known", 0)
	})
}

// TestCatalogOutage: a dead registry is left alone, and old listings serve.
func TestCatalogOutage(t *testing.T) {
	eachKind(t, mem.Options{}, func(t *testing.T, b *bench) {
		b.dirs()
		want := b.ls("vsoch")
		down := backends.Errorf("list", backends.Ref{}, backends.Unavailable, "connection refused")
		alive := b.set
		dead := &deadBackend{err: down}
		b.set = backends.Set{Backend: dead, Pusher: alive.Pusher}
		if alive.Tree != nil {
			b.set.Tree = dead
		}
		time.Sleep(2 * b.ttl)
		b.remount()
		for range 100 {
			b.want("ls", b.ls("vsoch"), want)
			b.want("dirs", b.dirs(), "a/b vsoch")
			if _, err := b.find("vsoch/hello:1"); err != nil {
				t.Fatal(err)
			}
		}
		if dead.calls > 2 {
			t.Errorf("a dead registry was asked %d times", dead.calls)
		}
		if _, err := b.find("vsoch/unknown"); backends.KindOf(err) != backends.Unavailable {
			t.Error("nobody can say that it is absent:", err)
		}
		if n := strings.Count(b.log.String(), "gives no listing"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, b.log)
		}
		before := dead.calls
		for range 60 { // an hour
			time.Sleep(time.Minute)
			b.ls("vsoch")
		}
		if n := dead.calls - before; n < 3 || n > 20 {
			t.Errorf("asked %d times in an hour of outage", n)
		}
		if err := b.Refresh(t.Context(), ""); backends.KindOf(err) != backends.Unavailable {
			t.Error(err)
		}
		b.want("ls after a refresh that failed", b.ls("vsoch"), want)

		dead.err = nil
		dead.alive = alive
		b.reg.Put(ref("vsoch/back:1"), []byte("back"))
		time.Sleep(2 * retryMost)
		b.want("ls", b.ls("vsoch"), "back:1 "+want)
		if n := strings.Count(b.log.String(), "answers again"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, b.log)
		}

		// A registry that was never there.
		b.dir = t.TempDir()
		dead.err = down
		b.remount()
		if _, err := b.Collections(t.Context()); backends.KindOf(err) != backends.Unavailable {
			t.Error(err)
		}
		if _, err := b.Images(t.Context(), "vsoch"); backends.KindOf(err) != backends.Unavailable {
			t.Error(err)
		}
	})
}

// deadBackend answers everything with err, or passes on to alive.
type deadBackend struct {
	mu    sync.Mutex
	calls int
	err   error
	alive backends.Set
}

func (d *deadBackend) fail() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	return d.err
}

func (d *deadBackend) Collections(ctx context.Context) iter.Seq2[string, error] {
	if err := d.fail(); err != nil {
		return func(yield func(string, error) bool) { yield("", err) }
	}
	return d.alive.Collections(ctx)
}

func (d *deadBackend) Images(ctx context.Context, c string) iter.Seq2[backends.Record, error] {
	if err := d.fail(); err != nil {
		return func(yield func(backends.Record, error) bool) { yield(backends.Record{}, err) }
	}
	return d.alive.Images(ctx, c)
}

func (d *deadBackend) Tree(ctx context.Context) iter.Seq2[backends.Record, error] {
	if err := d.fail(); err != nil {
		return func(yield func(backends.Record, error) bool) { yield(backends.Record{}, err) }
	}
	return d.alive.Tree.Tree(ctx)
}

func (d *deadBackend) Stat(ctx context.Context, r backends.Ref) (backends.Record, error) {
	if err := d.fail(); err != nil {
		return backends.Record{}, err
	}
	return d.alive.Stat(ctx, r)
}

func (d *deadBackend) Open(context.Context, backends.Record) (*backends.Stream, error) {
	return nil, d.fail()
}

func (d *deadBackend) Close() error { return nil }

// TestCatalogOwnChanges: what this mount does shows at once, costs no
// listing, and survives a restart.
func TestCatalogOwnChanges(t *testing.T) {
	eachKind(t, mem.Options{LowerCase: true, MinListAge: time.Hour}, func(t *testing.T, b *bench) {
		ctx := t.Context()
		b.ls("vsoch")
		b.count.Reset()
		rec, err := b.Push(ctx, backends.Ref{Collection: "vsoch", Image: "Mine", Tag: "1"}, source("mine"), nil)
		if err != nil || rec.Ref != ref("vsoch/mine:1") {
			t.Fatal(rec, err)
		}
		check := func(when string) {
			t.Helper()
			b.want("ls "+when, b.ls("vsoch"), "hello:1 hello:latest mine:1 tool:latest")
			for _, name := range []string{"vsoch/Mine:1", "vsoch/mine:1"} {
				got, err := b.find(name)
				if err != nil || got.Ref != ref("vsoch/mine:1") || got.Version != rec.Version {
					t.Errorf("%s %s: %v %v", when, name, got, err)
				}
			}
		}
		check("after the push")
		b.remount()
		check("after a remount")
		b.asked("push and look", 1)
		if err := b.Refresh(ctx, ""); err != nil {
			t.Fatal(err)
		}
		check("after a refresh")

		if err := b.Delete(ctx, rec); err != nil {
			t.Fatal(err)
		}
		b.count.Reset()
		b.missing("vsoch/mine:1")
		b.want("ls after rm", b.ls("vsoch"), "hello:1 hello:latest tool:latest")
		b.remount()
		b.missing("vsoch/mine:1")
		b.want("ls after rm and remount", b.ls("vsoch"), "hello:1 hello:latest tool:latest")
		if n := b.count.Calls(); n > 1 {
			t.Errorf("looking at what was deleted: %v", b.count)
		}
		if err := b.Delete(ctx, rec); err != nil {
			t.Error("deleting what is gone:", err)
		}

		tool, _ := b.find("vsoch/tool")
		moved, err := b.Move(ctx, tool, ref("new/tool:2"))
		if err != nil || moved.Ref != ref("new/tool:2") {
			t.Fatal(moved, err)
		}
		b.count.Reset()
		b.want("dirs", b.dirs(), "a/b new vsoch")
		b.want("ls", b.ls("vsoch"), "hello:1 hello:latest")
		if got, err := b.find("new/tool:2"); err != nil || got.Version == "" {
			t.Error(got, err)
		}

		// Overwritten by others later: the listing has the last word.
		b.reg.Put(ref("new/tool:2"), []byte("theirs"))
		time.Sleep(2 * time.Hour)
		if got, _ := b.find("new/tool:2"); got.Version == moved.Version {
			t.Error("an own change outlives a newer listing")
		}
		b.reg.Remove(ref("new/tool:2"))
		time.Sleep(2 * time.Hour)
		b.dirs()
		b.missing("new/tool:2")
	})
}

func TestCatalogFrozenAndReadOnly(t *testing.T) {
	eachKind(t, mem.Options{Sparse: true}, func(t *testing.T, b *bench) {
		ctx := t.Context()
		b.reg.Freeze(ref("vsoch/tool"), true)
		b.ls("vsoch")
		rec, _ := b.find("vsoch/tool")
		b.count.Reset()
		if _, err := b.Push(ctx, ref("vsoch/tool"), source("x"), nil); !errors.Is(err, backends.Frozen) {
			t.Error(err)
		}
		if err := b.Delete(ctx, rec); !errors.Is(err, backends.Frozen) {
			t.Error(err)
		}
		if _, err := b.Move(ctx, rec, ref("vsoch/other")); !errors.Is(err, backends.Frozen) {
			t.Error(err)
		}
		b.asked("changing what is frozen", 0)
		b.set.Pusher, b.set.Deleter, b.set.Mover = nil, nil, nil
		b.remount()
		if _, err := b.Push(ctx, ref("vsoch/x"), source("x"), nil); !errors.Is(err, backends.ReadOnly) {
			t.Error(err)
		}
		if err := b.MakeCollection(ctx, "mine"); !errors.Is(err, backends.ReadOnly) {
			t.Error(err)
		}
		b.set = b.reg.Set()
		b.set.Deleter, b.set.Mover = nil, nil
		b.remount()
		if err := b.Delete(ctx, rec); !errors.Is(err, backends.Unsupported) {
			t.Error(err)
		}
		if _, err := b.Move(ctx, rec, ref("vsoch/x")); !errors.Is(err, backends.Unsupported) {
			t.Error(err)
		}
	})
}

func TestCatalogLocalCollections(t *testing.T) {
	eachKind(t, mem.Options{}, func(t *testing.T, b *bench) {
		ctx := t.Context()
		for _, name := range []string{"vsoch", "a", "a/b"} {
			if err := b.MakeCollection(ctx, name); !errors.Is(err, backends.Exists) {
				t.Error(name, err)
			}
		}
		for _, name := range []string{"mine", "mine/sub"} {
			if err := b.MakeCollection(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		b.remount()
		b.want("dirs", b.dirs(), "a/b mine mine/sub vsoch")
		b.count.Reset()
		b.want("ls", b.ls("mine/sub"), "")
		b.asked("ls of a new collection", 0)
		for _, name := range []string{"vsoch", "mine", "a"} {
			if err := b.RemoveCollection(ctx, name); !errors.Is(err, ErrNotEmpty) {
				t.Error(name, err)
			}
		}
		if err := b.RemoveCollection(ctx, "none"); !errors.Is(err, backends.NotFound) {
			t.Error(err)
		}
		rec, err := b.Push(ctx, ref("mine/sub/x:1"), source("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		b.want("ls", b.ls("mine/sub"), "x:1")
		if err := b.RemoveCollection(ctx, "mine/sub"); !errors.Is(err, ErrNotEmpty) {
			t.Error(err)
		}
		if err := b.Delete(ctx, rec); err != nil {
			t.Fatal(err)
		}
		b.want("a collection stays when its last image goes", b.dirs(), "a/b mine mine/sub vsoch")
		for _, name := range []string{"mine/sub", "mine"} {
			if err := b.RemoveCollection(ctx, name); err != nil {
				t.Fatal(name, err)
			}
		}
		b.want("dirs", b.dirs(), "a/b vsoch")
		b.reg.MakeCollection("empty") // as it still has mine/sub, empty too
		time.Sleep(2 * b.ttl)
		b.want("dirs", b.dirs(), "a/b empty mine/sub vsoch")
		if err := b.RemoveCollection(ctx, "empty"); err != nil {
			t.Fatal(err)
		}
		b.want("dirs", b.dirs(), "a/b mine/sub vsoch")
		if has, err := b.HasCollection(ctx, "empty"); has || err != nil {
			t.Error(has, err)
		}
		time.Sleep(2 * b.ttl)
		b.want("the registry has the last word", b.dirs(), "a/b empty mine/sub vsoch")
	})
}

// TestCatalogRacingRefresh: a listing that was asked for before a push, and
// ends after it, does not hide the push; nor does it undo a deletion.
func TestCatalogRacingRefresh(t *testing.T) {
	for _, noTree := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, mem.Options{NoTree: noTree})
			ctx := t.Context()
			b.ls("vsoch")
			tool, _ := b.find("vsoch/tool")
			slow := &slowLists{Set: b.set}
			b.set.Backend = slow
			if !noTree {
				b.set.Tree = slow
			}
			b.remount()
			time.Sleep(2 * b.ttl)
			go b.Images(ctx, "vsoch") // has read the registry, and takes 5 s to say so
			time.Sleep(time.Second)
			if _, err := b.Push(ctx, ref("vsoch/mine:1"), source("x"), nil); err != nil {
				t.Fatal(err)
			}
			if err := b.Delete(ctx, tool); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
			b.want("ls", b.ls("vsoch"), "hello:1 hello:latest mine:1")
			time.Sleep(2 * b.ttl)
			b.want("ls", b.ls("vsoch"), "hello:1 hello:latest mine:1")
		})
	}
}

// slowLists reads a listing at once and hands it over 5 s later.
type slowLists struct{ backends.Set }

func (s *slowLists) Images(ctx context.Context, c string) iter.Seq2[backends.Record, error] {
	return late(s.Set.Images(ctx, c))
}

func (s *slowLists) Tree(ctx context.Context) iter.Seq2[backends.Record, error] {
	return late(s.Set.Tree.Tree(ctx))
}

func late(list iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error] {
	var recs []backends.Record
	for r := range list {
		recs = append(recs, r)
	}
	return func(yield func(backends.Record, error) bool) {
		time.Sleep(5 * time.Second)
		for _, r := range recs {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// fakeLists lists what it is told to, odd names included.
type fakeLists struct {
	deadBackend
	recs []backends.Record
	fail error
	hang bool
}

func (f *fakeLists) Images(ctx context.Context, c string) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) {
		for _, r := range f.recs {
			if !yield(r, nil) {
				return
			}
		}
		if f.hang {
			<-ctx.Done()
			yield(backends.Record{}, ctx.Err())
			return
		}
		if f.fail != nil {
			yield(backends.Record{}, f.fail)
		}
	}
}

func (f *fakeLists) Collections(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield("c", nil) }
}

func TestCatalogHostileAndPartialListings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, mem.Options{})
		fake := &fakeLists{}
		day := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
		img := func(image, tag, version string, created time.Time) backends.Record {
			return backends.Record{Ref: backends.Ref{Collection: "c", Image: image, Tag: tag}, Version: version, Created: created, Size: -7}
		}
		fake.recs = []backends.Record{
			img("ok", "1", "v", day), img("..", "1", "v", day), img("a\x00b", "1", "v", day), img("a/b", "1", "v", day),
			img("", "", "v", day), img("\x1b[31m", "1", "v", day), img("x", "\u202e", "v", day), img(strings.Repeat("l", 255), "1", "v", day),
			{Ref: ref("other/image:1"), Version: "v"},
			img("twice", "1", "old", day), img("twice", "1", "new", day.Add(time.Hour)), img("twice", "1", "older", day.Add(-time.Hour)),
			img("tie", "1", "b", day), img("tie", "1", "c", day), img("tie", "1", "a", day),
			img("ok", "1.2", "v", day), img("ok-2", "1", "v", day), img("ok", "10", "v", day),
		}
		b.set = backends.Set{Backend: fake}
		b.dir = t.TempDir()
		b.remount()
		want := "ok-2:1 ok:1.2 ok:1 ok:10 tie:1 twice:1"
		b.want("ls", b.ls("c"), want)
		before, _ := b.Images(t.Context(), "c")
		names := []string{}
		for _, r := range before {
			names = append(names, r.FileName())
			if r.Size != backends.UnknownSize {
				t.Error("size", r.Size)
			}
		}
		if !slices.IsSorted(names) {
			t.Error("not in the order of file names:", names)
		}
		if r, _ := b.find("c/twice:1"); r.Version != "new" {
			t.Error(r)
		}
		if r, _ := b.find("c/tie:1"); r.Version != "c" {
			t.Error(r)
		}
		if !strings.Contains(b.log.String(), "count=8") || strings.Contains(b.log.String(), "\x1b") || strings.Contains(b.log.String(), "\u202e") {
			t.Errorf("%q", b.log.String())
		}
		b.remount()
		after, _ := b.Images(t.Context(), "c")
		if fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("read back as\n%v\nnot\n%v", after, before)
		}

		// A listing that breaks off, or stalls, changes nothing.
		fake.recs = fake.recs[:1]
		fake.fail = backends.Errorf("list", backends.Ref{}, backends.Unavailable, "page 2")
		time.Sleep(2 * b.ttl)
		b.want("ls after a broken listing", b.ls("c"), want)
		fake.fail, fake.hang = nil, true
		time.Sleep(time.Hour)
		start := time.Now()
		b.want("ls while a listing stalls", b.ls("c"), want)
		if d := time.Since(start); d > listPatience {
			t.Error("waited", d)
		}
		if err := b.Refresh(t.Context(), "c"); backends.KindOf(err) != backends.Timeout {
			t.Error(err)
		}
		if d := time.Since(start); d > 3*listStall {
			t.Error("a stalled listing took", d)
		}
	})
}

func TestCatalogLearnAndNotes(t *testing.T) {
	eachKind(t, mem.Options{NoSize: true, NoDigest: true}, func(t *testing.T, b *bench) {
		b.ls("vsoch")
		rec, _ := b.find("vsoch/tool")
		if rec.Size >= 0 || !rec.Digest.IsZero() {
			t.Fatal(rec)
		}
		digest := backends.SHA256(make([]byte, 32))
		b.Learn(rec, 4711, backends.Digest{})
		b.Learn(rec, backends.UnknownSize, digest)
		b.SetNote("inspect/x", []byte("note"))
		for range 2 {
			got, _ := b.find("vsoch/tool")
			if got.Size != 4711 || got.Digest != digest {
				t.Error(got)
			}
			recs, _ := b.Images(t.Context(), "vsoch")
			if recs[2].Size != 4711 || recs[0].Size >= 0 {
				t.Error(recs)
			}
			if v, ok := b.Note("inspect/x"); !ok || string(v) != "note" {
				t.Error(v, ok)
			}
			if full, err := b.Full(t.Context(), got); err != nil || full.Size != 4711 {
				t.Error(full, err)
			}
			b.remount()
		}
		b.reg.Put(ref("vsoch/tool"), []byte("other bytes"))
		time.Sleep(time.Second)
		b.Refresh(t.Context(), "")
		if got, _ := b.find("vsoch/tool"); got.Size == 4711 {
			t.Error("the size of another version")
		}
	})
}

func TestCatalogVersions(t *testing.T) {
	eachKind(t, mem.Options{Sparse: true}, func(t *testing.T, b *bench) {
		full, err := b.reg.Set().Stat(t.Context(), ref("vsoch/tool"))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []string{full.Version, full.Digest.String(), full.Digest.Hex} {
			if rec, err := b.FindVersion(t.Context(), ref("vsoch/tool"), v); err != nil || rec.Version != full.Version {
				t.Errorf("%q: %v %v", v, rec, err)
			}
		}
		if _, err := b.FindVersion(t.Context(), ref("vsoch/tool"), "other"); !errors.Is(err, backends.NotFound) {
			t.Error(err)
		}
		// Gone since the listing: the Stat has the last word.
		b.reg.Remove(ref("vsoch/hello:1"))
		rec, err := b.find("vsoch/hello:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Full(t.Context(), rec); !errors.Is(err, backends.NotFound) {
			t.Error(err)
		}
		b.missing("vsoch/hello:1")
		b.want("ls", b.ls("vsoch"), "hello:latest tool:latest")
	})
}

func TestCatalogClose(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, mem.Options{NoTree: true})
		b.set = backends.Set{Backend: &fakeLists{hang: true}}
		b.remount()
		go b.Images(t.Context(), "c")
		synctest.Wait()
		start := time.Now()
		b.Close()
		if time.Since(start) > 0 {
			t.Error("Close waited for a listing that stalls")
		}
		if _, err := b.Images(t.Context(), "c"); err == nil {
			t.Error("a closed catalog lists")
		}
	})
}

func TestCatalogLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("lists 100,000 records")
	}
	b := newBench(t, mem.Options{})
	const n = 100_000
	fake := &fakeLists{}
	for i := range n {
		fake.recs = append(fake.recs, backends.Record{
			Ref: backends.Ref{Collection: "c", Image: fmt.Sprintf("image-%06d", (i*7919)%n), Tag: "latest"}, Version: fmt.Sprintf("%032d", i), Size: int64(i),
		})
	}
	b.set = backends.Set{Backend: fake}
	b.remount()
	start := time.Now()
	b.ls("c")
	t.Log("first listing", time.Since(start))
	start = time.Now()
	b.remount()
	t.Log("remount", time.Since(start))
	start = time.Now()
	recs, _ := b.Images(t.Context(), "c")
	t.Log("from the index", time.Since(start))
	start = time.Now()
	for _, r := range recs {
		if _, err := b.Find(t.Context(), r.Ref); err != nil {
			t.Fatal(err)
		}
	}
	t.Log("find of each", time.Since(start))
	if len(recs) != n {
		t.Error(len(recs))
	}
}

// TestCatalogConcurrent does everything at once, for the race detector, and
// then compares with the registry.
func TestCatalogConcurrent(t *testing.T) {
	for _, noTree := range []bool{false, true} {
		b := newBench(t, mem.Options{NoTree: noTree, Sparse: true})
		b.Close()
		b.ttl = time.Millisecond
		b.open()
		ctx := t.Context()
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 40 {
					mine := ref(fmt.Sprintf("c%d/image%d:1", i%3, w))
					rec, err := b.Push(ctx, mine, source(fmt.Sprint(w, i)), nil)
					if err != nil {
						t.Error(err)
						return
					}
					if got, err := b.Find(ctx, mine); err != nil || got.Version != rec.Version {
						t.Errorf("just pushed %v, found %v %v", rec, got, err)
					}
					b.Learn(rec, int64(i), backends.Digest{})
					b.Images(ctx, "c1")
					b.Collections(ctx)
					b.HasCollection(ctx, fmt.Sprint("none", i))
					if i%4 == 0 {
						b.Refresh(ctx, "")
					}
					if i%5 == 0 {
						if err := b.Delete(ctx, rec); err != nil {
							t.Error(err)
						}
						if _, err := b.Find(ctx, mine); !errors.Is(err, backends.NotFound) {
							t.Error("found what was deleted:", err)
						}
					}
				}
			})
		}
		wg.Wait()
		time.Sleep(5 * time.Millisecond)
		if err := b.Refresh(ctx, ""); err != nil {
			t.Fatal(err)
		}
		for c := range 3 {
			name := fmt.Sprint("c", c)
			var want []string
			for r, err := range b.reg.Images(ctx, name) {
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, r.Image+":"+r.Tag)
			}
			slices.Sort(want)
			b.want("ls "+name, b.ls(name), strings.Join(want, " "))
		}
	}
}
