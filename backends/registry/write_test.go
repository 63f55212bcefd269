package registry_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/registry"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
	"github.com/sregistry/sregistry-fs/secrets"
)

func TestPushCosts(t *testing.T) {
	for _, worker := range []bool{false, true} {
		s := serve(t, registrytest.Options{Worker: worker})
		b := dial(t, s, account(), nil)
		var rec, again backends.Record
		var err error
		requests(t, s, "the first push", map[string]int{"record": 2, "push": 1, "upload": 1}, func() {
			rec, err = push(t, b, ref("My_New.Coll", "Tool", "V1"), "some bytes")
		})
		if err != nil {
			t.Fatal(err)
		}
		if rec.Ref != ref("my-new-coll", "tool", "v1") || rec.Size != 10 || !rec.Full || rec.Digest.IsZero() {
			t.Errorf("%+v", rec)
		}
		// The server would lose the image.
		requests(t, s, "the same push again", map[string]int{"record": 1}, func() {
			again, err = push(t, b, ref("my-new-coll", "tool", "v1"), "some bytes")
		})
		if err != nil || !backends.SameVersion(rec, again) || again.Size != 10 {
			t.Errorf("%+v, %v", again, err)
		}
		wantBytes(t, b, again, "some bytes")
		over, err := push(t, b, rec.Ref, "other bytes")
		if err != nil || over.Version == rec.Version {
			t.Errorf("%+v, %v", over, err)
		}
		wantBytes(t, b, over, "other bytes")
	}
}

func TestVersionSurvivesTheWorker(t *testing.T) {
	s := serve(t, registrytest.Options{})
	b := dial(t, s, account(), nil)
	rec, err := push(t, b, ref("dino", "tacos", "1"), "some bytes")
	if err != nil {
		t.Fatal(err)
	}
	s.RunWorker()
	now := stat(t, b, rec.Ref)
	if rec.Digest.Algorithm != "md5" || now.Digest != data("some bytes").Digest() || !backends.SameVersion(rec, now) {
		t.Errorf("before %+v, after %+v", rec, now)
	}
}

func TestRefusedPushes(t *testing.T) {
	s := serve(t, registrytest.Options{
		Users:   []registrytest.User{{Name: user, Token: token}, {Name: "root", Token: strings.Repeat("1", 40), Superuser: true}},
		MaxBody: 5000,
	})
	s.MakeCollection("mine", false, user)
	s.MakeCollection("theirs", false, "someone")
	seed(t, s, registrytest.Image{Collection: "mine", Name: "ice", Tag: "1", Frozen: true}, "frozen")
	seed(t, s, registrytest.Image{Collection: "theirs", Name: "tacos", Tag: "1"}, "theirs")
	me := dial(t, s, account(), nil)
	root := dial(t, s, map[string]string{"username": "root", "token": strings.Repeat("1", 40)}, nil)
	for _, c := range []struct {
		what string
		b    backends.Backend
		ref  backends.Ref
		body string
		kind backends.Kind
		cost map[string]int
	}{
		{"frozen", me, ref("mine", "ice", "1"), "new", backends.Frozen, map[string]int{"record": 1}},
		{"another's collection", me, ref("theirs", "new", "1"), "new", backends.Denied, map[string]int{"record": 1, "push": 1}},
		{"acknowledged and thrown away", root, ref("theirs", "tacos", "1"), "new", backends.Denied, map[string]int{"record": 2, "push": 1, "upload": 1}},
		{"acknowledged and thrown away, new tag", root, ref("theirs", "tacos", "2"), "new", backends.Denied, map[string]int{"record": 2, "push": 1, "upload": 1}},
		{"too large", me, ref("mine", "big", "1"), strings.Repeat("x", 5000), backends.Quota, map[string]int{"record": 1, "push": 1, "upload": 1}},
		{"too long", me, ref("mine", strings.Repeat("n", 200), "1"), "new", backends.Invalid, map[string]int{"record": 2, "push": 1, "upload": 1}},
		{"no credentials", dial(t, s, nil, nil), ref("mine", "new", "1"), "new", backends.Denied, map[string]int{}},
		{"a name it would change", me, ref("mine", "new", "1.sif"), "new", backends.Invalid, map[string]int{}},
	} {
		requests(t, s, c.what, c.cost, func() {
			_, err := push(t, c.b, c.ref, c.body)
			wantKind(t, c.what, err, c.kind)
		})
	}
	wantBytes(t, me, stat(t, me, ref("mine", "ice", "1")), "frozen")
	wantBytes(t, me, stat(t, me, ref("theirs", "tacos", "1")), "theirs")
}

func TestPushDisabled(t *testing.T) {
	s := serve(t, registrytest.Options{PushDisabled: true})
	_, err := push(t, dial(t, s, account(), nil), ref("dino", "tacos", "1"), "bytes")
	wantKind(t, "push", err, backends.Denied)
}

// The hour of the signature ends during the upload: the server refuses at its
// end, and the second upload is signed for the server's new hour.
func TestPushAcrossTheHour(t *testing.T) {
	c := newClock()
	s := serve(t, registrytest.Options{Now: c.Now})
	b := dialAt(t, s, c)
	var uploads atomic.Int32
	s.SetFault(func(endpoint string, _ *http.Request) *registrytest.Fault {
		if endpoint == "upload" && uploads.Add(1) == 1 {
			c.Add(time.Hour)
		}
		return nil
	})
	requests(t, s, "push", map[string]int{"record": 3, "push": 1, "upload": 2}, func() {
		rec, err := push(t, b, ref("dino", "tacos", "1"), "bytes")
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, s, rec, "bytes")
	})
	s.SetFault(func(endpoint string, _ *http.Request) *registrytest.Fault {
		if endpoint == "upload" {
			c.Add(time.Hour)
		}
		return nil
	})
	requests(t, s, "push that always crosses it", map[string]int{"record": 3, "push": 1, "upload": 2}, func() {
		_, err := push(t, b, ref("dino", "tacos", "2"), "bytes")
		wantKind(t, "push", err, backends.Denied)
	})
}

// wantSame checks what the server stores, without a request.
func wantSame(t *testing.T, s *registrytest.Server, rec backends.Record, body string) {
	t.Helper()
	img, ok := s.Get(rec.Collection, rec.Image, rec.Tag)
	if !ok || (img.Version != rec.Word) {
		t.Errorf("the server has %+v, the record is %+v", img, rec)
	}
	if want := data(body); rec.Digest.Algorithm == "sha256" && rec.Digest != want.Digest() {
		t.Errorf("digest %v", rec.Digest)
	}
}

func dialAt(t *testing.T, s *registrytest.Server, c *clock) backends.Backend {
	t.Helper()
	b, err := registry.Driver().Dial(t.Context(), backends.Config{
		Location: s.URL, Settings: secrets.Fixed("registry", account()), Log: slog.New(slog.DiscardHandler), Now: c.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An answer that is lost must not lead to a second upload of the same bytes.
func TestPushWhoseAnswerIsLost(t *testing.T) {
	s := serve(t, registrytest.Options{})
	b := dial(t, s, account(), nil)
	lose := func(endpoint string, kind registrytest.FaultKind) {
		s.SetFault(func(e string, _ *http.Request) *registrytest.Fault {
			if e == endpoint {
				return &registrytest.Fault{Kind: kind, Code: 500}
			}
			return nil
		})
	}
	lose("upload", registrytest.Drop)
	requests(t, s, "push", map[string]int{"record": 2, "push": 1, "upload": 1}, func() {
		rec, err := push(t, b, ref("dino", "tacos", "1"), "bytes")
		if err != nil || rec.Size != 5 {
			t.Errorf("%+v, %v", rec, err)
		}
	})
	lose("upload", registrytest.Reset)
	_, err := push(t, b, ref("dino", "tacos", "2"), "bytes")
	wantKind(t, "push that never arrived", err, backends.Unavailable)
	lose("record", registrytest.Status)
	requests(t, s, "push over what cannot be seen", map[string]int{"record": 2}, func() {
		if _, err := push(t, b, ref("dino", "tacos", "1"), "other"); err == nil {
			t.Error("it succeeded")
		}
	})
	s.SetFault(nil)
	wantBytes(t, b, stat(t, b, ref("dino", "tacos", "1")), "bytes")
}

// Compare and verify go on when the record view is used up.
func TestPushAtTheViewLimit(t *testing.T) {
	s := serve(t, registrytest.Options{ViewLimit: 1})
	b := dial(t, s, account(), nil)
	stat0 := ref("dino", "tacos", "1")
	rec, err := push(t, b, stat0, "bytes")
	if err != nil {
		t.Fatal(err)
	}
	requests(t, s, "the same push", map[string]int{"search": 1}, func() {
		if again, err := push(t, b, stat0, "bytes"); err != nil || !backends.SameVersion(rec, again) {
			t.Errorf("%+v, %v", again, err)
		}
	})
	_, err = push(t, b, ref("dino", "tacos", "2"), "bytes")
	wantKind(t, "push over the limit", err, backends.Throttled)
}

func TestDelete(t *testing.T) {
	s := serve(t, registrytest.Options{DeleteWorks: true})
	b := dial(t, s, account(), nil)
	old := seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, "one")
	rec := stat(t, b, ref("dino", "tacos", "1"))
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, "two")
	requests(t, s, "delete of what was replaced", map[string]int{"record": 1}, func() {
		wantKind(t, "delete", remove(t, b, rec), backends.Stale)
	})
	if now, _ := s.Get("dino", "tacos", "1"); now.ID == old.ID {
		t.Fatal("not replaced")
	}
	rec = stat(t, b, rec.Ref)
	s.Freeze("dino", "tacos", "1", true)
	requests(t, s, "delete of a frozen image", map[string]int{"record": 1}, func() {
		wantKind(t, "delete", remove(t, b, rec), backends.Frozen)
	})
	s.Freeze("dino", "tacos", "1", false)
	wantKind(t, "delete without a token", remove(t, dial(t, s, nil, nil), rec), backends.Denied)
	wantKind(t, "delete with a wrong token", remove(t, dial(t, s, map[string]string{"username": "nobody", "token": token}, nil), rec), backends.Denied)
	requests(t, s, "delete", map[string]int{"record": 1, "delete": 1}, func() {
		if err := remove(t, b, rec); err != nil {
			t.Error(err)
		}
	})
	wantKind(t, "delete again", remove(t, b, rec), backends.NotFound)

	// The answer is lost, the image is gone.
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "2"}, "one")
	rec = stat(t, b, ref("dino", "tacos", "2"))
	s.SetFault(func(e string, r *http.Request) *registrytest.Fault {
		if r.Method == http.MethodDelete {
			return &registrytest.Fault{Kind: registrytest.Drop}
		}
		return nil
	})
	if err := remove(t, b, rec); err != nil {
		t.Error(err)
	}
}

func TestDeleteAsShipped(t *testing.T) {
	s := serve(t, registrytest.Options{})
	b := dial(t, s, account(), nil)
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, "one")
	rec := stat(t, b, ref("dino", "tacos", "1"))
	requests(t, s, "delete", map[string]int{"record": 2, "delete": 1}, func() {
		err := remove(t, b, rec)
		wantKind(t, "delete", err, backends.Unavailable)
		if !strings.Contains(backends.HintOf(err), "web page") {
			t.Errorf("hint %q", backends.HintOf(err))
		}
	})
	wantBytes(t, b, rec, "one")
}

// Whatever goes wrong, neither the token nor a collection's secret is told.
func TestNoSecretIsTold(t *testing.T) {
	s := serve(t, registrytest.Options{NoLimits: true})
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, strings.Repeat("x", 50_000))
	seed(t, s, registrytest.Image{Collection: "hidden", Name: "tacos", Tag: "1"}, "x")
	s.MakeCollection("dino", false, user)
	s.MakeCollection("hidden", true, user)
	log := &buffer{}
	var told strings.Builder
	tell := func(rec backends.Record, err error) {
		if err != nil {
			told.WriteString(err.Error() + backends.HintOf(err) + "\n")
		}
		told.WriteString(strings.Join([]string{rec.Version, rec.Word, rec.URL, rec.Ref.String()}, " "))
		for k, v := range rec.Attributes {
			told.WriteString(k + v)
		}
	}
	faults := []*registrytest.Fault{nil, {Kind: registrytest.Short, At: 10}, {Kind: registrytest.Reset}, {Kind: registrytest.Page}}
	for _, code := range []int{301, 400, 403, 404, 429, 500} {
		faults = append(faults, &registrytest.Fault{Kind: registrytest.Status, Code: code})
	}
	errs := 0
	for _, f := range faults {
		for _, target := range []string{"record", "download", "upload", "push", "delete", "containers"} {
			if f != nil && (f.Kind == registrytest.Reset || f.Kind == registrytest.Short) && target == "record" {
				continue // tried again for many seconds
			}
			b := dial(t, s, account(), log)
			for _, r := range []backends.Ref{ref("dino", "tacos", "1"), ref("hidden", "tacos", "1")} {
				rec, err := b.Stat(t.Context(), r)
				tell(rec, err)
				s.SetFault(func(e string, _ *http.Request) *registrytest.Fault {
					if e == target && f != nil {
						return f
					}
					return nil
				})
				_, err = read(t, b, rec)
				tell(rec, err)
				if err != nil {
					errs++
				}
				rec, err = push(t, b, ref(r.Collection, "new", target), fmt.Sprint(target, f))
				tell(rec, err)
				tell(rec, remove(t, b, rec))
				s.SetFault(nil)
			}
		}
	}
	if errs < 20 {
		t.Errorf("only %d reads failed", errs)
	}
	for what, text := range map[string]string{"an error or record": told.String(), "the log": log.String()} {
		for _, secret := range []string{token, s.Secret("dino"), s.Secret("hidden"), "Signature"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s tells %s", what, secret)
			}
		}
	}
	if !strings.Contains(log.String(), "/…") {
		t.Error("no download is in the log: nothing was tested")
	}
}
