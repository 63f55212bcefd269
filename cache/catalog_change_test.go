package cache

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

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
