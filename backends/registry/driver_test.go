package registry_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/registry"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
	"github.com/sregistry/sregistry-fs/secrets"
)

// recorder notes where requests go and answers none.
type recorder struct {
	mu   sync.Mutex
	seen []*http.Request
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, req)
	return nil, context.Canceled
}

func TestWhereTheTokenGoes(t *testing.T) {
	with := func(base string) map[string]string {
		m := account()
		if base != "" {
			m["base"] = base
		}
		return m
	}
	for _, c := range []struct {
		name, location string
		settings       map[string]string
		url, auth      string
	}{
		{"named registry", "https://reg.example.org", with(""), "https://reg.example.org/", "Token " + token},
		{"registry of the settings", "", with("https://reg.example.org/api/"), "https://reg.example.org/", "Token " + token},
		{"the same in both", "reg.example.org", with("https://reg.example.org"), "https://reg.example.org/", "Token " + token},
		{"another than in the settings", "https://evil.example", with("https://reg.example.org"), "https://evil.example/", ""},
		{"another port", "https://reg.example.org:8443", with("https://reg.example.org"), "https://reg.example.org:8443/", ""},
		{"without encryption", "http://reg.example.org", with(""), "http://reg.example.org/", ""},
		{"no scheme, no https", "reg.example.org", map[string]string{"SREGISTRY_REGISTRY_NOHTTPS": "x", "token": token}, "http://reg.example.org/", ""},
		{"this machine", "http://127.0.0.1:1", with(""), "http://127.0.0.1:1/", "Token " + token},
		{"a blank token", "https://reg.example.org", map[string]string{"token": " "}, "https://reg.example.org/", ""},
	} {
		var r recorder
		var log bytes.Buffer
		b, err := registry.Driver().Dial(t.Context(), backends.Config{
			Location: c.location, Settings: secrets.Fixed("registry", c.settings),
			HTTP: &http.Client{Transport: &r}, Log: slog.New(slog.NewTextHandler(&log, nil)), Now: time.Now,
		})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for range b.Collections(t.Context()) {
			break
		}
		if len(r.seen) != 1 {
			t.Fatalf("%s: %d requests", c.name, len(r.seen))
		}
		if got := r.seen[0]; !strings.HasPrefix(got.URL.String(), c.url+"api/collections/?") || got.Header.Get("Authorization") != c.auth {
			t.Errorf("%s: %v with %q", c.name, got.URL, got.Header.Get("Authorization"))
		}
		if strings.Contains(log.String(), token) {
			t.Errorf("%s: the token is in the log", c.name)
		}
	}
}

func TestDialRefuses(t *testing.T) {
	for _, location := range []string{"", "ftp://x", "https://me:canary@reg.example.org"} {
		_, err := registry.Driver().Dial(t.Context(), backends.Config{
			Location: location, Settings: secrets.Fixed("registry", nil), Log: slog.New(slog.DiscardHandler), Now: time.Now,
		})
		wantKind(t, location, err, backends.Invalid)
		if backends.HintOf(err) == "" || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", location, err)
		}
	}
}

// A registry's own idea of its name is often wrong; the way that was taken to
// the record is the way to the image.
func TestMisconfiguredDomain(t *testing.T) {
	s := serve(t, registrytest.Options{DomainName: "http://localhost.invalid"})
	seed(t, s, registrytest.Image{Collection: "dino", Name: "tacos", Tag: "1"}, "one")
	b := dial(t, s, account(), nil)
	wantBytes(t, b, stat(t, b, ref("dino", "tacos", "1")), "one")
	for rec, err := range b.Images(t.Context(), "dino") {
		if err != nil || !strings.HasPrefix(rec.URL, s.URL+"/containers/") {
			t.Errorf("%+v, %v", rec, err)
		}
	}
}
