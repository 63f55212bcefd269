package cache

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

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
