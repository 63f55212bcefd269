package transport

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// TestWatchdog: whatever stands still or drips ends, and a reader who takes
// his time does not.
func TestWatchdog(t *testing.T) {
	stream := func(t *testing.T, body func(ctx context.Context) io.ReadCloser) (*backends.Stream, time.Time) {
		c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, ContentLength: -1, Body: body(r.Context())}, nil
		}), Options{})
		st, err := c.Stream(t.Context(), Request{Op: "open", Ref: ref(), URL: parse(t, "http://h")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = st.Close() })
		return st, time.Now()
	}
	t.Run("silent before the header", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _ := newTest(t, "http://h", fake(silence), Options{})
			for _, limit := range []time.Duration{0, 3 * time.Second, 10 * time.Minute} {
				began := time.Now()
				_, _, _, err := c.Do(t.Context(), Request{Op: "get", Ref: ref(), URL: parse(t, "http://h"), Timeout: limit})
				wantKind(t, err, backends.Timeout)
				if limit == 0 {
					limit = stall
				}
				if took := time.Since(began); took != limit {
					t.Errorf("took %v, want %v", took, limit)
				}
			}
		})
	})
	t.Run("stalls", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st, began := stream(t, func(ctx context.Context) io.ReadCloser { return &paced{ctx, 3, 5 * time.Second} })
			got, err := io.ReadAll(st)
			wantKind(t, err, backends.Timeout)
			if took := time.Since(began); len(got) != 3 || took != 15*time.Second+stall {
				t.Errorf("%d bytes in %v", len(got), took)
			}
		})
	})
	t.Run("drips", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st, began := stream(t, func(ctx context.Context) io.ReadCloser { return &paced{ctx, 1e6, time.Second} })
			_, err := io.ReadAll(st)
			wantKind(t, err, backends.Timeout)
			if took := time.Since(began); took > 2*dripWindow {
				t.Errorf("took %v", took)
			}
		})
	})
	t.Run("slow but useful", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st, _ := stream(t, func(ctx context.Context) io.ReadCloser { return &paced{ctx, 1e6, 20 * time.Millisecond} })
			if _, err := io.CopyN(io.Discard, st, 20_000); err != nil {
				t.Errorf("50 bytes a second: %v", err)
			}
		})
	})
	t.Run("slow reader", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st, _ := stream(t, func(ctx context.Context) io.ReadCloser { return &paced{ctx, 1e6, time.Millisecond} })
			for range 5 {
				if _, err := io.ReadFull(st, make([]byte, 100)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
			}
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, ContentLength: 9, Body: &paced{r.Context(), 1, 0}}, nil
			}), Options{})
			st, err := c.Stream(ctx, Request{Op: "open", URL: parse(t, "http://h")})
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(time.Second, cancel)
			if _, err := io.ReadAll(st); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			deadline, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if st, err = c.Stream(deadline, Request{Op: "open", Ref: ref(), URL: parse(t, "http://h")}); err != nil {
				t.Fatal(err)
			}
			_, err = io.ReadAll(st)
			wantKind(t, err, backends.Timeout)
		})
	})
	t.Run("cancelled with everything buffered", func(t *testing.T) {
		c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) { return response(r, 200, nil, "123456"), nil }), Options{})
		ctx, cancel := context.WithCancel(t.Context())
		st, err := c.Stream(ctx, Request{Op: "open", URL: parse(t, "http://h")})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadFull(st, make([]byte, 3))
		cancel()
		if rest, err := io.ReadAll(st); !errors.Is(err, context.Canceled) || len(rest) > 0 {
			t.Errorf("got %q, %v", rest, err)
		}
	})
	t.Run("upload stalls", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
				_, _ = io.ReadFull(r.Body, make([]byte, 10))
				_ = r.Body.Close()
				return silence(r)
			}), Options{})
			began := time.Now()
			_, _, _, err := c.Upload(t.Context(), Request{Op: "push", Ref: ref(), URL: parse(t, "http://h")}, newSource(strings.Repeat("x", 2<<20)), nil)
			wantKind(t, err, backends.Timeout)
			if took := time.Since(began); took != stall {
				t.Errorf("took %v", took)
			}
		})
	})
	t.Run("slow disk", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
				body, err := io.ReadAll(r.Body)
				if err != nil || r.Context().Err() != nil {
					return silence(r)
				}
				return response(r, 200, nil, string(body)), nil
			}), Options{})
			_, _, body, err := c.Do(t.Context(), Request{
				Op: "push", Method: "PUT", URL: parse(t, "http://h"), Length: 5,
				Body: func() (io.ReadCloser, error) {
					time.Sleep(time.Second)
					return io.NopCloser(io.MultiReader(strings.NewReader("im"), slow(time.Hour), strings.NewReader("age"))), nil
				},
			})
			if err != nil || string(body) != "image" {
				t.Errorf("got %q, %v", body, err)
			}
		})
	})
	t.Run("upload is sent, the registry thinks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
				buf := make([]byte, 32<<10)
				for {
					time.Sleep(stall - time.Second) // slow, but never still
					if _, err := r.Body.Read(buf); err != nil {
						break
					}
				}
				_ = r.Body.Close()
				select {
				case <-time.After(4 * time.Minute):
				case <-r.Context().Done():
					return silence(r)
				}
				return response(r, 201, nil, ""), nil
			}), Options{})
			status, _, _, err := c.Upload(t.Context(), Request{Op: "push", Ref: ref(), URL: parse(t, "http://h")}, newSource(strings.Repeat("x", 2<<20)), nil)
			if err != nil || status != 201 {
				t.Errorf("%d, %v", status, err)
			}
		})
	})
}

// slow is a reader of nothing that takes its time.
type slow time.Duration

func (s slow) Read([]byte) (int, error) {
	time.Sleep(time.Duration(s))
	return 0, io.EOF
}
