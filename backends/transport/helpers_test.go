package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/secrets"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newTest makes a Client for base, with waits of no length between tries.
func newTest(t testing.TB, base string, rt http.RoundTripper, o Options) (*Client, *buffer) {
	t.Helper()
	log := &buffer{}
	cfg := backends.Config{
		Settings: secrets.Fixed("test", nil), Now: time.Now,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if rt != nil {
		cfg.HTTP = &http.Client{Transport: rt}
	}
	o.Base = parse(t, base)
	c, err := New(cfg, o)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	c.jitter = func(time.Duration) time.Duration { return 0 }
	t.Cleanup(c.Close)
	return c, log
}

func parse(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func serve(t testing.TB, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func ref() backends.Ref { return backends.Ref{Collection: "c", Image: "i", Tag: "t"} }

// get sends a plain GET and gives the body.
func get(t testing.TB, c *Client, u string) (string, error) {
	t.Helper()
	_, _, body, err := c.Do(context.Background(), Request{Op: "get", Ref: ref(), URL: parse(t, u)})
	return string(body), err
}

func wantKind(t testing.TB, err error, kind backends.Kind) {
	t.Helper()
	var e *backends.Error
	if !errors.As(err, &e) {
		t.Errorf("got %v, want an *Error of kind %q", err, kind)
		return
	}
	if backends.KindOf(err) != kind {
		t.Errorf("got kind %q (%v), want %q", backends.KindOf(err), err, kind)
	}
	if e.Op == "" || e.Ref != ref() {
		t.Errorf("the error has op %q and ref %v", e.Op, e.Ref)
	}
}

// fake is a round tripper made of a function; it ends with the request's
// context like the real one.
type fake func(r *http.Request) (*http.Response, error)

func (f fake) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, context.Cause(r.Context())
	}
	return f(r)
}

func response(r *http.Request, status int, header http.Header, body string) *http.Response {
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{
		StatusCode: status, Header: header, Request: r, ContentLength: int64(len(body)),
		Body: io.NopCloser(bytes.NewReader([]byte(body))),
	}
}

// silence blocks until the request is given up.
func silence(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, context.Cause(r.Context())
}

// paced is a body that brings n bytes, one each interval, then stands still.
type paced struct {
	ctx      context.Context
	n        int
	interval time.Duration
}

func (p *paced) Read(b []byte) (int, error) {
	var tick <-chan time.Time
	if p.n > 0 {
		p.n--
		tick = time.After(p.interval)
	}
	select {
	case <-tick:
		b[0] = 'x'
		return 1, nil
	case <-p.ctx.Done():
		return 0, context.Cause(p.ctx)
	}
}

func (p *paced) Close() error { return nil }

// source is a backends.Source of bytes.
type source struct{ *bytes.Reader }

func newSource(s string) source { return source{bytes.NewReader([]byte(s))} }

func (s source) Size() int64             { return s.Reader.Size() }
func (s source) Digest() backends.Digest { return backends.Digest{} }
