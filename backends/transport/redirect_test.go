package transport

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
)

const canary = "canary-7d1f"

// authorized plants the canary where registries put their credentials.
func authorized() Options {
	return Options{Authorize: func(r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+canary)
		r.Header.Set("Private-Token", canary)
		q := r.URL.Query()
		q.Set("token", canary)
		r.URL.RawQuery = q.Encode()
		return nil
	}}
}

// carries reports whether any part of a request holds the canary.
func carries(r *http.Request) bool {
	for _, values := range r.Header {
		if strings.Contains(strings.Join(values, " "), canary) {
			return true
		}
	}
	return strings.Contains(r.URL.String(), canary)
}

func TestCredentialsStayAtTheOrigin(t *testing.T) {
	var back, other, same, atOther, atBack atomic.Bool
	var base string
	foreign := serve(t, func(w http.ResponseWriter, r *http.Request) {
		other.Store(true)
		if carries(r) {
			atOther.Store(true)
		}
		if r.Header.Get("Range") != "bytes=0-3" {
			t.Errorf("the range got lost: %q", r.Header.Get("Range"))
		}
		http.Redirect(w, r, base+"/back", http.StatusFound)
	})
	base = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/start":
			http.Redirect(w, r, "/same", http.StatusFound)
		case "/same":
			same.Store(carries(r))
			http.Redirect(w, r, foreign+"/there", http.StatusTemporaryRedirect)
		case "/back":
			back.Store(true)
			if carries(r) {
				atBack.Store(true)
			}
			_, _ = io.WriteString(w, "done")
		}
	})
	c, _ := newTest(t, base, nil, authorized())
	h := http.Header{"Range": {"bytes=0-3"}, "X-Registry-Secret": {canary}, "Cookie": {"s=" + canary}, "Authorization": {canary}}
	_, _, body, err := c.Do(context.Background(), Request{Op: "get", URL: parse(t, base+"/start"), Header: h})
	if err != nil || string(body) != "done" {
		t.Fatalf("got %q, %v", body, err)
	}
	if !same.Load() {
		t.Error("a redirect within the origin lost the credentials")
	}
	if !other.Load() || atOther.Load() {
		t.Errorf("the other origin: reached %v, with credentials %v", other.Load(), atOther.Load())
	}
	if !back.Load() || atBack.Load() {
		t.Errorf("back at the registry from elsewhere: reached %v, with credentials %v", back.Load(), atBack.Load())
	}
	// Asked for directly, another origin gets none either; nor with NoAuth the registry.
	atOther.Store(false)
	if _, _, _, err := c.Do(context.Background(), Request{Op: "get", URL: parse(t, foreign+"/x"), Header: http.Header{"Range": {"bytes=0-3"}}}); err != nil || atOther.Load() {
		t.Errorf("another origin asked directly: %v, with credentials %v", err, atOther.Load())
	}
	same.Store(false)
	if _, _, _, err := c.Do(context.Background(), Request{Op: "get", URL: parse(t, base+"/same"), NoAuth: true, Header: http.Header{"Range": {"bytes=0-3"}}}); err != nil || same.Load() {
		t.Errorf("NoAuth: %v, with credentials %v", err, same.Load())
	}
}

func TestSameOrigin(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"https://h/x", "https://h:443/y", true},
		{"http://h", "http://H:80", true},
		{"https://h", "http://h", false},
		{"https://h", "https://h:8443", false},
		{"https://h", "https://x.h", false},
		{"https://h", "https://h.evil", false},
	} {
		if got := SameOrigin(parse(t, tt.a), parse(t, tt.b)); got != tt.want {
			t.Errorf("SameOrigin(%s, %s) = %v", tt.a, tt.b, got)
		}
	}
}

func TestNoDowngrade(t *testing.T) {
	var plain atomic.Int32
	open := serve(t, func(http.ResponseWriter, *http.Request) { plain.Add(1) })
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, open, http.StatusFound)
	}))
	t.Cleanup(s.Close)
	c, _ := newTest(t, s.URL, s.Client().Transport, authorized())
	for _, u := range []string{s.URL, open} {
		_, err := get(t, c, u)
		wantKind(t, err, backends.Denied)
	}
	if plain.Load() != 0 {
		t.Error("the address without encryption was asked")
	}
}

// TestNoDowngradeOnTheWay: not for a registry without encryption either.
func TestNoDowngradeOnTheWay(t *testing.T) {
	to := map[string]string{"http://h/": "https://h/", "https://h/": "http://store/"}
	c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
		if next := to[r.URL.String()]; next != "" {
			return response(r, 302, http.Header{"Location": {next}}, ""), nil
		}
		return response(r, 200, nil, "open"), nil
	}), Options{})
	_, err := get(t, c, "http://h/")
	wantKind(t, err, backends.Denied)
}

func TestRedirects(t *testing.T) {
	var base string
	var puts atomic.Int32
	foreign := serve(t, func(http.ResponseWriter, *http.Request) { puts.Add(1) })
	base = serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/file":
			w.Header().Set("Location", "file:///etc/passwd")
			w.WriteHeader(http.StatusFound)
		case "/none":
			w.WriteHeader(http.StatusFound)
		case "/302", "/301", "/303":
			w.Header().Set("Location", "/show")
			w.WriteHeader(map[string]int{"/301": 301, "/302": 302, "/303": 303}[r.URL.Path])
		case "/307":
			w.Header().Set("Location", "/show")
			w.WriteHeader(http.StatusTemporaryRedirect)
		case "/foreign":
			w.Header().Set("Location", foreign)
			w.WriteHeader(http.StatusTemporaryRedirect)
		case "/show":
			_, _ = io.WriteString(w, r.Method+" "+string(body))
		}
	})
	c, _ := newTest(t, base, nil, Options{})
	send := func(method, path string) (string, error) {
		_, _, body, err := c.Upload(context.Background(), Request{Op: "put", Ref: ref(), Method: method, URL: parse(t, base+path)}, newSource("bytes"), nil)
		return string(body), err
	}
	for _, tt := range []struct {
		method, path string
		want         string
		kind         backends.Kind
	}{
		{"PUT", "/307", "PUT bytes", 0},
		{"POST", "/303", "GET ", 0},
		{"PUT", "/302", "", backends.Unavailable},
		{"PUT", "/303", "", backends.Unavailable},
		{"POST", "/301", "", backends.Unavailable},
		{"DELETE", "/302", "", backends.Unavailable},
		{"PUT", "/foreign", "", backends.Denied},
	} {
		got, err := send(tt.method, tt.path)
		if tt.kind != 0 {
			wantKind(t, err, tt.kind)
		} else if err != nil || got != tt.want {
			t.Errorf("%s %s: %q, %v", tt.method, tt.path, got, err)
		}
	}
	if puts.Load() != 0 {
		t.Error("an upload followed a redirect to another origin")
	}
	for _, path := range []string{"/loop", "/file", "/none"} {
		_, err := get(t, c, base+path)
		wantKind(t, err, backends.Unavailable)
	}
	status, h, _, err := c.Do(context.Background(), Request{Op: "get", URL: parse(t, base+"/302"), NoFollow: true})
	if err != nil || status != 302 || h.Get("Location") != "/show" {
		t.Errorf("NoFollow: %d, %v, %v", status, h, err)
	}
}
