package backendtest

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
)

// testListing: what is there is listed, all of it, each once, every time.
func testListing(s *session) {
	images := map[backends.Ref][]byte{}
	for n := range 7 {
		images[plain(n)] = noise(uint64(n), 100+n)
	}
	second := plain(1) // another tag of the same image
	second.Tag = "2.0"
	images[second] = noise(99, 50)
	if nested := (backends.Ref{Collection: "lab-0/group/team", Image: "tool", Tag: "1.0"}); s.fits(nested) {
		images[nested] = noise(100, 60)
	}
	for ref, data := range images {
		s.seed(ref, data)
	}

	names := s.collections()
	want := map[string]bool{}
	for ref := range images {
		want[ref.Collection] = true
	}
	for name := range want {
		if !names[name] {
			s.Errorf("Collections does not list %q", name)
		}
		got := s.images(name)
		for ref, data := range images {
			if ref.Collection != name {
				continue
			}
			rec, ok := got[ref]
			if !ok {
				s.Errorf("Images %q does not list %v", name, ref)
				continue
			}
			s.checkBytes(rec, data)
			delete(got, ref)
		}
		for ref := range got {
			s.Errorf("Images %q lists %v, which nobody put there", name, ref)
		}
		if rec, err := s.set.Stat(s.ctx, backends.Ref{Collection: name}); err != nil {
			s.Errorf("Stat of the collection %q: %v", name, err)
		} else if rec.Ref != (backends.Ref{Collection: name}) {
			s.Errorf("Stat of the collection %q has the ref %q", name, rec.Ref)
		}
	}
	// A name above others may be a collection of its own, but without images.
	for name := range names {
		if want[name] {
			continue
		}
		above := false
		for w := range want {
			above = above || strings.HasPrefix(w, name+"/")
		}
		if !above {
			s.Errorf("Collections lists %q, which nobody put there", name)
		}
		if got := s.images(name); len(got) > 0 {
			s.Errorf("Images %q lists %d images, which nobody put there", name, len(got))
		}
	}
}

// many images need several pages in most registries whose pages a test made small.
const many = 25

// testPaging: a consumer may stop anywhere, and start again.
func testPaging(s *session) {
	at := func(n int) backends.Ref {
		return backends.Ref{Collection: "lab-0", Image: fmt.Sprintf("tool-%d", n), Tag: "1.0"}
	}
	for n := range many {
		s.seed(at(n), noise(uint64(n), 10))
	}
	seq := s.set.Images(s.ctx, "lab-0")
	before := s.requests()
	for _, stop := range []int{1, 2, many - 1, many} {
		got := 0
		seq(func(_ backends.Record, err error) bool {
			if got++; got > stop {
				s.Fatalf("the listing went on after its consumer had stopped at %d", stop)
			}
			if err != nil {
				s.Fatalf("Images: %v", err)
			}
			return got < stop
		})
		if got != stop {
			s.Errorf("the listing gave %d images, want %d", got, stop)
		}
		if cost := s.requests() - before; stop == many && cost >= 4*many {
			s.Errorf("four listings of %d images took %d requests: one per image?", many, cost)
		}
	}
	for range 2 {
		seen := map[backends.Ref]bool{}
		for rec, err := range seq {
			if err != nil {
				s.Fatalf("Images: %v", err)
			}
			seen[rec.Ref] = true
		}
		if len(seen) != many {
			s.Errorf("walking the same listing again gave %d images, want %d", len(seen), many)
		}
	}
	got := 0
	s.set.Collections(s.ctx)(func(string, error) bool {
		if got++; got > 1 {
			s.Fatal("the listing of collections went on after its consumer had stopped")
		}
		return false
	})
	if s.set.Tree == nil {
		return
	}
	got = 0
	s.set.Tree.Tree(s.ctx)(func(backends.Record, error) bool {
		if got++; got > 1 {
			s.Fatal("the listing as a whole went on after its consumer had stopped")
		}
		return false
	})
}

// requests is what the registry got so far, or 0 where it is not counted.
func (s *session) requests() int {
	if s.store.Requests == nil {
		return 0
	}
	return s.store.Requests()
}

// testTree: one walk tells what Collections and Images tell.
func testTree(s *session) {
	for n := range 7 {
		s.seed(plain(n), noise(uint64(n), 100+n))
	}
	names, images := map[string]bool{}, map[backends.Ref]backends.Record{}
	for rec, err := range s.set.Tree.Tree(s.ctx) {
		if err != nil {
			s.Fatalf("Tree: %v", err)
		}
		names[rec.Collection] = true
		if rec.IsCollection() {
			continue
		}
		if _, twice := images[rec.Ref]; twice {
			s.Errorf("Tree lists %v twice", rec.Ref)
		}
		images[rec.Ref] = rec
	}
	for name := range s.collections() {
		if !names[name] {
			s.Errorf("Tree does not tell of the collection %q", name)
		}
		delete(names, name)
		for ref, rec := range s.images(name) {
			inTree, ok := images[ref]
			if !ok || inTree.Version != rec.Version || inTree.Size != rec.Size {
				s.Errorf("Tree tells %+v of %v, Images %+v", inTree, ref, rec)
			}
			delete(images, ref)
		}
	}
	for name := range names {
		s.Errorf("Tree tells of the collection %q, Collections does not", name)
	}
	for ref := range images {
		s.Errorf("Tree tells of %v, Images does not", ref)
	}
}

// testAbsent: what is not there is NotFound, and nothing else is disturbed.
func testAbsent(s *session) {
	s.seed(plain(0), noise(0, 100))
	rec := s.stat(plain(0))

	image, tag, collection := plain(0), plain(0), plain(0)
	image.Image = "absent"
	tag.Tag = "absent"
	collection.Collection = "absent"
	for _, ref := range []backends.Ref{image, tag, collection} {
		if _, err := s.set.Stat(s.ctx, ref); !errors.Is(err, backends.NotFound) {
			s.Errorf("Stat of absent %v gave %v, want not found", ref, err)
		}
		absent := rec
		absent.Ref = ref
		_, err := s.read(absent)
		s.wantKind(fmt.Sprintf("reading absent %v", ref), err, backends.NotFound, backends.Stale)
		if s.set.Ranges != nil {
			_, err := s.readRange(absent, 0, 10)
			s.wantKind(fmt.Sprintf("reading a range of absent %v", ref), err, backends.NotFound, backends.Stale, backends.Unsupported)
		}
		if s.set.Local != nil {
			f, err := s.set.Local.OpenLocal(s.ctx, absent)
			if err == nil {
				_ = f.Close()
			}
			s.wantKind(fmt.Sprintf("opening the file of absent %v", ref), err, backends.NotFound, backends.Stale, backends.Unsupported)
		}
	}
	_, err := s.set.Stat(s.ctx, backends.Ref{Collection: "absent"})
	s.wantKind("Stat of an absent collection", err, backends.NotFound)
	n := 0
	for _, err = range s.set.Images(s.ctx, "absent") {
		n++
	}
	if n != 1 {
		s.Errorf("listing an absent collection gave %d pairs, want one error", n)
	}
	s.wantKind("listing an absent collection", err, backends.NotFound)
	s.holds(plain(0), noise(0, 100))

	if s.store.Remove == nil {
		return
	}
	if err := s.store.Remove(plain(0)); err != nil {
		s.Fatalf("Remove: %v", err)
	}
	s.gone(plain(0))
	_, err = s.read(rec)
	s.wantKind("reading an image that is gone", err, backends.NotFound, backends.Stale)
}

// oddNames are names that have to survive the way to the registry and back,
// as far as it can hold them at all.
func oddNames() []backends.Ref {
	in := func(image, tag string) backends.Ref {
		return backends.Ref{Collection: "lab-0", Image: image, Tag: tag}
	}
	return []backends.Ref{
		in("MiXeD", "Case"),
		in("with space", "a b"),
		in("a+b", "1+2"),
		in("100%", "%41"),
		in("%2e%2e", "%2F"),
		in("über", "größe"),
		in("u\u0308ber", "decomposed"), // must stay distinct from the one above
		in("日本", "東京"),
		in("q?x=1&y", "z#frag"),
		in("it's", `"quoted"`),
		in(`back\slash`, "1"),
		in("semi;colon,comma", "1"),
		in("tool", "v1.0.0-rc.1_x"),
		in("tool", "a:b"),
		in("dots..inside", "1..2"),
		in("trailing.", "dot."),
		in("-dash", "-1"),
		in("~tilde", "~"),
		in("[brackets]", "{braces}"),
		in("*star", "?"),
		in("tool.simg", "1"),
		in("tool", "1.sif"),
		in("tool", "1.simg"),
		in("library", "latest"),
		in("tags", "manifests"),
		in(strings.Repeat("n", 120), strings.Repeat("t", 120)),
		{Collection: "MiXeD", Image: "tool", Tag: "1"},
		{Collection: "with space", Image: "tool", Tag: "1"},
		{Collection: "ü+%41&?#", Image: "tool", Tag: "1"},
		{Collection: "tool.sif", Image: "tool", Tag: "1"},
		{Collection: "lab:0", Image: "tool", Tag: "1"},
		{Collection: "lab-0/a", Image: "tool", Tag: "1"},
		{Collection: "lab-0/a/b/c", Image: "tool", Tag: "1"},
		{Collection: backends.DefaultCollection, Image: "tool", Tag: "latest"},
	}
}

// testNames: odd names are listed, found and opened as what they are.
func testNames(s *session) {
	images := map[backends.Ref][]byte{}
	for i, ref := range oddNames() {
		if !s.fits(ref) {
			s.Logf("left out, does not fit: %q", ref)
			continue
		}
		images[ref] = noise(uint64(i), 20+i)
		s.seed(ref, images[ref])
	}
	names := s.collections()
	for ref, data := range images {
		if !names[ref.Collection] {
			s.Errorf("Collections does not list %q", ref.Collection)
		}
		rec := s.holds(ref, data)
		if s.set.Ranges != nil {
			got, err := s.readRange(rec, 1, 3)
			if !errors.Is(err, backends.Unsupported) && (err != nil || string(got) != string(data[1:4])) {
				s.Errorf("OpenRange %q: %d bytes, %v", ref, len(got), err)
			}
		}
	}
	// A name that can never be an image is an error and not another image.
	s.seed(plain(0), noise(0, 10))
	up := plain(0)
	up.Image = "../" + up.Collection + "/" + up.Image
	up.Collection = "lab-1"
	for _, ref := range []backends.Ref{
		up,
		{Collection: "lab-0/../lab-0", Image: plain(0).Image, Tag: plain(0).Tag},
		{Collection: "/lab-0", Image: plain(0).Image, Tag: plain(0).Tag},
		{Collection: "lab-0", Image: plain(0).Image, Tag: ""},
		{Collection: "", Image: plain(0).Image, Tag: plain(0).Tag},
	} {
		_, err := s.set.Stat(s.ctx, ref)
		s.wantKind(fmt.Sprintf("Stat of %q", ref), err, backends.NotFound, backends.Invalid)
	}
}
