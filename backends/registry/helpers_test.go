package registry_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/registry/registrytest"
)

// clock is one that a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 22, 17, 20, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

type source struct{ *bytes.Reader }

func data(s string) source { return source{bytes.NewReader([]byte(s))} }

func (s source) Size() int64 { return s.Reader.Size() }

func (s source) Digest() backends.Digest {
	h := sha256.New()
	_, _ = io.Copy(h, io.NewSectionReader(s, 0, s.Size())) // memory does not fail
	return backends.SHA256(h.Sum(nil))
}

func ref(coll, image, tag string) backends.Ref {
	return backends.Ref{Collection: coll, Image: image, Tag: tag}
}

func seed(t *testing.T, s *registrytest.Server, img registrytest.Image, body string) registrytest.Image {
	t.Helper()
	img, err := s.Add(img, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func stat(t *testing.T, b backends.Backend, r backends.Ref) backends.Record {
	t.Helper()
	rec, err := b.Stat(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func read(t *testing.T, b backends.Backend, rec backends.Record) (string, error) {
	t.Helper()
	st, err := b.Open(t.Context(), rec)
	if err != nil {
		return "", err
	}
	defer st.Close()
	text, err := io.ReadAll(st)
	return string(text), err
}

func wantBytes(t *testing.T, b backends.Backend, rec backends.Record, want string) {
	t.Helper()
	if got, err := read(t, b, rec); err != nil || got != want {
		t.Errorf("%v holds %q, %v; want %q", rec.Ref, got, err, want)
	}
}

func wantKind(t *testing.T, what string, err error, kind backends.Kind) {
	t.Helper()
	if err == nil || backends.KindOf(err) != kind {
		t.Errorf("%s: %v, want %v", what, err, kind)
	}
}

// requests runs f and checks which requests it made.
func requests(t *testing.T, s *registrytest.Server, what string, want map[string]int, f func()) {
	t.Helper()
	s.ResetCounts()
	f()
	got := s.Counts()
	for k := range want {
		if got[k] != want[k] {
			t.Errorf("%s made the requests %v, want %v", what, got, want)
			return
		}
		delete(got, k)
	}
	for k, n := range got {
		if n != 0 {
			t.Errorf("%s also made %d requests to %s", what, n, k)
		}
	}
}

func push(t *testing.T, b backends.Backend, r backends.Ref, body string) (backends.Record, error) {
	t.Helper()
	return b.(backends.Pusher).Push(t.Context(), r, data(body), nil)
}

func remove(t *testing.T, b backends.Backend, rec backends.Record) error {
	t.Helper()
	return b.(backends.Deleter).Delete(t.Context(), rec)
}
