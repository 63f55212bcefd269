package transport

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/secrets"
)

func TestReach(t *testing.T) {
	for s, want := range map[string]reach{
		"93.184.216.34":          public,
		"2606:2800::1":           public,
		"10.1.2.3":               private,
		"172.31.0.1":             private,
		"192.168.0.1":            private,
		"100.64.0.1":             private,
		"fd00::1":                private,
		"::ffff:10.0.0.1":        private,
		"::ffff:100.64.0.1":      private,
		"127.0.0.1":              loopback,
		"::1":                    loopback,
		"::ffff:127.0.0.1":       loopback,
		"169.254.169.254":        never,
		"fe80::1":                never,
		"::ffff:169.254.169.254": never,
		"0.0.0.0":                never,
		"0.1.2.3":                never,
		"::":                     never,
		"224.0.0.1":              never,
	} {
		if got := reachOf(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: %d, want %d", s, got, want)
		}
	}
}

// TestAddresses: what a registry refers to may be as far out as itself, and no
// closer. 192.0.2.1 is a documentation address and counts as public.
func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		base, to, resolved string
		ok                 bool
	}{
		{"https://192.0.2.1", "192.0.2.9:443", "192.0.2.9:443", true},
		{"https://192.0.2.1", "evil:80", "10.0.0.1:80", false},
		{"https://192.0.2.1", "evil:80", "127.0.0.1:80", false},
		{"https://10.0.0.1", "store:80", "10.0.0.2:80", true},
		{"https://10.0.0.1", "store:80", "127.0.0.1:80", false},
		{"https://127.0.0.1", "store:80", "10.0.0.2:80", true},
		{"https://127.0.0.1", "store:80", "127.0.0.1:81", true},
		{"https://127.0.0.1", "cloud:80", "169.254.169.254:80", false},
		{"https://169.254.169.254", "169.254.169.254:443", "169.254.169.254:443", false},
		{"https://reg.example", "reg.example:443", "10.0.0.1:443", true},
		{"https://reg.example", "reg.example:443", "[fe80::1%eth0]:443", false},
		{"https://reg.example", "reg.example:80", "10.0.0.1:80", false}, // another port is not the registry
	} {
		err := newGuard(parse(t, tt.base)).allow(tt.to, tt.resolved)
		if (err == nil) != tt.ok {
			t.Errorf("registry %s, %s at %s: %v", tt.base, tt.to, tt.resolved, err)
		}
	}
	g := newGuard(parse(t, "https://reg.example"))
	if g.allow("reg.example:443", "10.0.0.1:443") != nil || g.allow("store:80", "10.0.0.2:80") != nil {
		t.Error("a registry seen inside may refer to what is inside")
	}
}

func TestRedirectInside(t *testing.T) {
	var asked atomic.Int32
	inside := serve(t, func(http.ResponseWriter, *http.Request) { asked.Add(1) })
	c, _ := newTest(t, "http://192.0.2.1", nil, Options{})
	_, err := get(t, c, inside)
	wantKind(t, err, backends.Denied)
	if asked.Load() != 0 {
		t.Error("an address inside was asked for a registry outside")
	}
	for _, to := range []string{"http://169.254.169.254/latest/meta-data", "http://[::ffff:169.254.169.254]/", "http://0.0.0.0/"} {
		base := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
		c, _ := newTest(t, base, nil, Options{})
		_, err := get(t, c, base)
		wantKind(t, err, backends.Denied)
	}
}

// TestProxy: the user's proxy may be anywhere, and what it fetches is its
// business.
func TestProxy(t *testing.T) {
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "via proxy: "+r.URL.String()) })
	u := parse(t, proxy)
	c, _ := newTest(t, "http://registry.invalid", &http.Transport{Proxy: http.ProxyURL(u)}, Options{})
	if got, err := get(t, c, "http://registry.invalid/x"); err != nil || got != "via proxy: http://registry.invalid/x" {
		t.Errorf("got %q, %v", got, err)
	}
	broken := func(*http.Request) (*url.URL, error) {
		return nil, errors.New("invalid proxy address http://user:" + canary + "@%zz")
	}
	c, log := newTest(t, "http://registry.invalid", &http.Transport{Proxy: broken}, Options{})
	_, err := get(t, c, "http://registry.invalid/x")
	if err == nil || strings.Contains(err.Error()+log.String(), canary) {
		t.Errorf("a broken proxy setting: %v", err)
	}
}

func TestNoVerify(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	s.Config.ErrorLog = nil
	t.Cleanup(s.Close)
	for value, want := range map[string]bool{"": false, "no": false, "yes": true, "TRUE": true, "1": true} {
		c, err := New(backends.Config{Settings: secrets.Fixed("test", map[string]string{noVerify: value})}, Options{Base: parse(t, s.URL)})
		if err != nil {
			t.Fatal(err)
		}
		_, _, _, err = c.Do(context.Background(), Request{Op: "get", Ref: ref(), URL: parse(t, s.URL)})
		if (err == nil) != want {
			t.Errorf("%s=%q: %v", noVerify, value, err)
		}
		if !want {
			wantKind(t, err, backends.Unavailable)
			if backends.HintOf(err) == "" {
				t.Error("no hint about the certificate")
			}
		}
		c.Close()
	}
}

func TestBase(t *testing.T) {
	for _, bad := range []*url.URL{nil, {Scheme: "https"}, {Scheme: "ftp", Host: "h"}, {Host: "h"}} {
		if _, err := New(backends.Config{}, Options{Base: bad}); backends.KindOf(err) != backends.Invalid {
			t.Errorf("base %v: %v", bad, err)
		}
	}
}
