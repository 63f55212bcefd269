package registry_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

func TestTree(t *testing.T) {
	s := serve(t, registrytest.Options{})
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "latest"}, "a")
	md5 := seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "new", Version: "md5"}, "b")
	frozen := seed(t, s, registrytest.Image{Collection: "dino", Name: "ice", Tag: "1", Frozen: true}, "c")
	seed(t, s, registrytest.Image{Collection: "dino", Name: "old", Tag: "1", Version: "-"}, "d")
	seed(t, s, registrytest.Image{
		Collection: "dino", Name: "meta", Tag: "1",
		Metadata: map[string]any{"size_mb": 62, "maker": "me", "where": "https://h/x?X-Goog-Signature=canary", "image": "canary"},
	}, "e")
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "DUMMY-01234567-89ab-4cde-8f01-23456789abcd"}, "f")
	seed(t, s, registrytest.Image{Collection: "user/repo", Name: "user/repo", Tag: "1"}, "g")
	seed(t, s, registrytest.Image{Collection: "hidden", Name: "tacos", Tag: "1"}, "h")
	s.MakeCollection("hidden", true)
	s.MakeCollection("empty", false)
	b := dial(t, s, account(), nil)

	got := map[backends.Ref]backends.Record{}
	requests(t, s, "Tree", map[string]int{"collections": 1, "containers": 1}, func() {
		for rec, err := range b.(backends.TreeLister).Tree(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			got[rec.Ref] = rec
		}
	})
	for _, r := range []backends.Ref{
		{Collection: "dino"},
		{Collection: "empty"},
		{Collection: "user/repo"},
		ref("dino", "tacos", "latest"), ref("dino", "tacos", "new"), ref("dino", "ice", "1"), ref("dino", "old", "1"),
		ref("dino", "meta", "1"), ref("user/repo", "repo", "1"),
	} {
		rec, ok := got[r]
		if !ok {
			t.Errorf("%v is missing", r)
		} else if !r.IsCollection() && (rec.Version == "" || !rec.Full || rec.Size != backends.UnknownSize || !rec.Created.IsZero()) {
			t.Errorf("record %+v", rec)
		}
		delete(got, r)
		switch r {
		case ref("dino", "tacos", "latest"):
			if rec.Digest.Algorithm != "sha256" || rec.Word != "sha256."+rec.Digest.Hex {
				t.Errorf("digest %v of %q", rec.Digest, rec.Word)
			}
		case ref("dino", "tacos", "new"):
			if rec.Digest != (backends.Digest{Algorithm: "md5", Hex: md5.Version}) {
				t.Errorf("digest %v, want the MD5 %s", rec.Digest, md5.Version)
			}
		case ref("dino", "ice", "1"):
			if !rec.Frozen || rec.Word != frozen.Version {
				t.Errorf("frozen: %+v", rec)
			}
		case ref("dino", "old", "1"):
			if !rec.Digest.IsZero() || rec.Word != "" {
				t.Errorf("no version: %+v", rec)
			}
		case ref("dino", "meta", "1"):
			if a := rec.Attributes; a["size_mb"] != "62" || a["maker"] != "me" || a["where"] != "" || a["image"] != "" {
				t.Errorf("attributes %v", a)
			}
		}
	}
	for r := range got {
		t.Errorf("%v is listed", r)
	}
}

func TestBuildsAreReachable(t *testing.T) {
	s := serve(t, registrytest.Options{DeleteWorks: true})
	seed(t, s, registrytest.Image{Collection: "user/repo", Name: "user/repo", Tag: "1"}, "built")
	s.MakeCollection("user/repo", true, user)
	b := dial(t, s, account(), nil)
	r := ref("user/repo", "repo", "1")
	rec := stat(t, b, r)
	wantBytes(t, b, rec, "built")
	for range 51 { // past the limit the search has to find it as well
		rec = stat(t, b, r)
	}
	if err := remove(t, b, rec); err != nil {
		t.Error(err)
	}
	if _, ok := s.Get("user/repo", "user/repo", "1"); ok {
		t.Error("it is still there")
	}
}

func TestPrivateCollections(t *testing.T) {
	s := serve(t, registrytest.Options{Users: []registrytest.User{{Name: user, Token: token}, {Name: "other", Token: strings.Repeat("1", 40)}}})
	seed(t, s, registrytest.Image{Collection: "hidden", Name: "tacos", Tag: "1"}, "secret")
	seed(t, s, registrytest.Image{Collection: "hidden", Name: "tacos", Tag: "2"}, "two")
	s.MakeCollection("hidden", true, user)
	r := ref("hidden", "tacos", "1")

	b := dial(t, s, account(), nil)
	var rec backends.Record
	requests(t, s, "the first Stat", map[string]int{"record": 2}, func() { rec = stat(t, b, r) })
	requests(t, s, "a later Stat", map[string]int{"record": 1}, func() { stat(t, b, ref("hidden", "tacos", "2")) })
	requests(t, s, "Open", map[string]int{"download": 1}, func() { wantBytes(t, b, rec, "secret") })
	if got := stat(t, b, backends.Ref{Collection: "hidden"}); got.Collection != "hidden" {
		t.Errorf("the collection: %+v", got)
	}
	for _, err := range b.Images(t.Context(), "hidden") {
		wantKind(t, "Images", err, backends.Denied)
	}

	_, err := dial(t, s, nil, nil).Stat(t.Context(), r)
	wantKind(t, "Stat without a token", err, backends.Denied)
	if backends.HintOf(err) == "" {
		t.Error("no hint")
	}
	_, err = dial(t, s, map[string]string{"username": "other", "token": strings.Repeat("1", 40)}, nil).Stat(t.Context(), r)
	wantKind(t, "Stat by another user", err, backends.Denied)
	_, err = dial(t, s, map[string]string{"username": user, "token": strings.Repeat("2", 40)}, nil).Stat(t.Context(), r)
	wantKind(t, "Stat with a wrong token", err, backends.Denied)
}

func TestClocksThatDiffer(t *testing.T) {
	skewed := newClock() // far from the backend's clock
	s := serve(t, registrytest.Options{Now: skewed.Now, DeleteWorks: true})
	seed(t, s, registrytest.Image{Collection: "hidden", Name: "tacos", Tag: "1"}, "secret")
	s.MakeCollection("hidden", true, user)
	b := dial(t, s, account(), nil)
	rec := stat(t, b, ref("hidden", "tacos", "1"))
	requests(t, s, "Stat when the clock is known", map[string]int{"record": 1}, func() { stat(t, b, rec.Ref) })
	if err := remove(t, b, rec); err != nil {
		t.Error(err)
	}
	b = dial(t, s, account(), nil)
	if _, err := push(t, b, ref("hidden", "new", "1"), "bytes"); err != nil {
		t.Error(err)
	}
	s.MakeCollection("foreign", false)
	requests(t, s, "a refusal that no clock explains", map[string]int{"record": 1, "push": 1}, func() {
		_, err := push(t, b, ref("foreign", "new", "1"), "bytes")
		wantKind(t, "push", err, backends.Denied)
	})
}

func TestOpenCosts(t *testing.T) {
	s := serve(t, registrytest.Options{})
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, "one")
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "2"}, "two")
	seed(t, s, registrytest.Image{Collection: "dino", Name: "ice", Tag: "3", Frozen: true}, "three")
	b := dial(t, s, account(), nil)
	recs := map[string]backends.Record{}
	for rec, err := range b.Images(t.Context(), "dino") {
		if err != nil {
			t.Fatal(err)
		}
		recs[rec.Tag] = rec
	}
	requests(t, s, "the first Open", map[string]int{"record": 1, "download": 1}, func() { wantBytes(t, b, recs["1"], "one") })
	requests(t, s, "a sibling's Open", map[string]int{"download": 1}, func() { wantBytes(t, b, recs["2"], "two") })
	requests(t, s, "a frozen sibling's Open", map[string]int{"download": 1}, func() { wantBytes(t, b, recs["3"], "three") })
	s.RotateSecret("dino")
	requests(t, s, "Open with an old secret", map[string]int{"record": 1, "download": 2}, func() { wantBytes(t, b, recs["2"], "two") })
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "2"}, "too")
	requests(t, s, "Open of what was replaced", map[string]int{"record": 1, "download": 1}, func() {
		_, err := read(t, b, recs["2"])
		wantKind(t, "Open", err, backends.Stale)
	})
	// A number that is another image's by now, as after a restored database.
	wrong := recs["1"]
	wrong.Version = recs["3"].Version
	_, err := read(t, b, wrong)
	wantKind(t, "Open of another image's number", err, backends.Stale)
	wrong.Version = "abc"
	_, err = read(t, b, wrong)
	wantKind(t, "Open of no number", err, backends.Stale)
	if backends.Probe(b).Ranges != nil {
		t.Error("the server has no ranges")
	}
}

func TestWeeklyLimit(t *testing.T) {
	s := serve(t, registrytest.Options{ContainerWeekly: 1})
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, "one")
	b := dial(t, s, account(), nil)
	rec := stat(t, b, ref("dino", "tacos", "1"))
	wantBytes(t, b, rec, "one")
	_, err := read(t, b, rec)
	wantKind(t, "Open over the limit", err, backends.Quota)
	requests(t, s, "Stat over the limit", map[string]int{"record": 1, "search": 1}, func() {
		if now := stat(t, b, rec.Ref); !backends.SameVersion(rec, now) {
			t.Errorf("%+v", now)
		}
	})
	_, err = read(t, dial(t, s, account(), nil), rec)
	wantKind(t, "Open in a later process", err, backends.Quota)
	s.ResetLimits()
	wantBytes(t, b, rec, "one")
}

func TestViewLimit(t *testing.T) {
	s := serve(t, registrytest.Options{ViewLimit: 2})
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, "one")
	b := dial(t, s, account(), nil)
	r := ref("dino", "tacos", "1")
	rec := stat(t, b, r)
	stat(t, b, r)
	requests(t, s, "Stat at the limit", map[string]int{"record": 1, "search": 1}, func() { stat(t, b, r) })
	requests(t, s, "Stat after the limit", map[string]int{"search": 1}, func() { stat(t, b, r) })
	wantBytes(t, b, rec, "one") // another view, another count
	wantBytes(t, b, rec, "one")
	requests(t, s, "Open at the limit", map[string]int{"download": 1}, func() {
		_, err := read(t, b, rec)
		wantKind(t, "Open", err, backends.Throttled)
	})
	requests(t, s, "Open after the limit", map[string]int{}, func() {
		_, err := read(t, b, rec)
		wantKind(t, "Open", err, backends.Throttled)
		if after := backends.RetryAfter(err); after <= 0 || after > time.Hour {
			t.Errorf("ask again after %v", after)
		}
	})
}

func TestAnonymousThrottle(t *testing.T) {
	s := serve(t, registrytest.Options{AnonLimit: 3})
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, "one")
	b := dial(t, s, nil, nil)
	r := ref("dino", "tacos", "1")
	rec := stat(t, b, r)
	for range 2 {
		stat(t, b, r)
	}
	requests(t, s, "the request too many", map[string]int{"record": 1}, func() {
		_, err := b.Stat(t.Context(), r)
		wantKind(t, "Stat", err, backends.Throttled)
		if after := backends.RetryAfter(err); after < 23*time.Hour {
			t.Errorf("ask again after %v", after)
		}
	})
	requests(t, s, "requests after that", map[string]int{}, func() {
		_, err := b.Stat(t.Context(), r)
		wantKind(t, "Stat", err, backends.Throttled)
		for _, err := range b.Collections(t.Context()) {
			wantKind(t, "Collections", err, backends.Throttled)
		}
	})
	wantBytes(t, b, rec, "one") // downloads are not of the API
	stat(t, dial(t, s, account(), nil), r)
}

func TestBrokenDownloads(t *testing.T) {
	s := serve(t, registrytest.Options{NoLimits: true})
	body := strings.Repeat("x", 100_000)
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, body)
	b := dial(t, s, account(), nil)
	rec := stat(t, b, ref("dino", "tacos", "1"))
	for name, c := range map[string]struct {
		fault registrytest.Fault
		kind  backends.Kind
	}{
		"short": {registrytest.Fault{Kind: registrytest.Short, At: 50_000}, backends.Unavailable},
		"reset": {registrytest.Fault{Kind: registrytest.Reset}, backends.Unavailable},
		"page":  {registrytest.Fault{Kind: registrytest.Page}, backends.Unavailable},
		"500":   {registrytest.Fault{Kind: registrytest.Status, Code: 500}, backends.Unavailable},
		"502":   {registrytest.Fault{Kind: registrytest.Status, Code: 502}, backends.Unavailable},
	} {
		s.SetFault(func(endpoint string, _ *http.Request) *registrytest.Fault {
			if endpoint == "download" {
				return &c.fault
			}
			return nil
		})
		s.ResetCounts()
		_, err := read(t, b, rec)
		wantKind(t, name, err, c.kind)
		// net/http itself repeats a request on a kept connection that was
		// reset before the first byte of an answer.
		most := 1
		if name == "reset" {
			most = 2
		}
		if n := s.Count("download"); n < 1 || n > most {
			t.Errorf("%s: %d downloads, at most %d may be made", name, n, most)
		}
	}
	s.SetFault(nil)
	wantBytes(t, b, rec, body)
}

func TestAbsentCollections(t *testing.T) {
	s := serve(t, registrytest.Options{})
	b := dial(t, s, account(), nil)
	_, err := b.Stat(t.Context(), backends.Ref{Collection: "absent"})
	wantKind(t, "Stat", err, backends.NotFound)
	_, err = b.Stat(t.Context(), ref("absent", "x", "1"))
	if !errors.Is(err, backends.NotFound) {
		t.Error(err)
	}
	_, err = b.Stat(t.Context(), ref("dino", "../x", "1"))
	wantKind(t, "Stat of no name", err, backends.Invalid)
	if strings.Contains(err.Error(), "%!") {
		t.Error(err)
	}
}

func TestMinListAge(t *testing.T) {
	s := serve(t, registrytest.Options{})
	if got := backends.Probe(dial(t, s, account(), nil)).MinListAge; got != time.Hour {
		t.Errorf("with a token: %v", got)
	}
	if got := backends.Probe(dial(t, s, nil, nil)).MinListAge; got != 6*time.Hour {
		t.Errorf("without: %v", got)
	}
}

func TestRequireAuth(t *testing.T) {
	s := serve(t, registrytest.Options{RequireAuth: true})
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, "one")
	b := dial(t, s, account(), nil)
	wantBytes(t, b, stat(t, b, ref("dino", "tacos", "1")), "one")
	_, err := dial(t, s, nil, nil).Stat(t.Context(), ref("dino", "tacos", "1"))
	wantKind(t, "Stat without a token", err, backends.Denied)
}
