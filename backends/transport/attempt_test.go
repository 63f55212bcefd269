package transport

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

func TestStatuses(t *testing.T) {
	want := map[int]backends.Kind{
		400: backends.Invalid, 401: backends.Denied, 403: backends.Denied, 404: backends.NotFound, 405: backends.Unsupported,
		409: backends.Exists, 410: backends.NotFound, 412: backends.Stale, 413: backends.Quota, 416: backends.Stale, 418: backends.Other,
		429: backends.Throttled, 500: backends.Unavailable, 501: backends.Unsupported, 503: backends.Unavailable, 507: backends.Quota,
		304: backends.Unavailable, 599: backends.Unavailable,
	}
	for status, kind := range want {
		c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) { return response(r, status, nil, ""), nil }), Options{})
		_, err := get(t, c, "http://h/secret?token="+canary)
		wantKind(t, err, kind)
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the URL: %v", err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "86400": 24 * time.Hour, "-1": 0, "1.5": 0, "x": 0,
		"99999999999999999999": 0, "999999999": 8 * 24 * time.Hour,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:05 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {s}}, now); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

// TestRetries counts tries, and how long they take with the longest jitter.
func TestRetries(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	status := func(n int, after string) func(r *http.Request) (*http.Response, error) {
		return func(r *http.Request) (*http.Response, error) {
			h := http.Header{}
			if after != "" {
				h.Set("Retry-After", after)
			}
			return response(r, n, h, ""), nil
		}
	}
	down := func(*http.Request) (*http.Response, error) { return nil, refused }
	for _, tt := range []struct {
		name  string
		r     Request
		do    func(r *http.Request) (*http.Response, error)
		tries int
		kind  backends.Kind
		after time.Duration
	}{
		{"unavailable", Request{}, status(503, ""), 4, backends.Unavailable, 0},
		{"no connection", Request{}, down, 4, backends.Unavailable, 0},
		{"throttled", Request{}, status(429, ""), 4, backends.Throttled, 0},
		{"throttled for a while", Request{}, status(429, "9"), 4, backends.Throttled, 9 * time.Second},
		{"throttled for longer", Request{}, status(429, "20"), 2, backends.Throttled, 20 * time.Second},
		{"throttled for a day", Request{}, status(429, "86400"), 1, backends.Throttled, 24 * time.Hour},
		{"back in an hour", Request{}, status(503, "3600"), 1, backends.Throttled, time.Hour},
		{"post", Request{Method: "POST"}, status(503, ""), 1, backends.Unavailable, 0},
		{"post without connection", Request{Method: "POST"}, down, 1, backends.Unavailable, 0},
		{"post throttled", Request{Method: "POST"}, status(429, ""), 4, backends.Throttled, 0},
		{"harmless post", Request{Method: "POST", Idempotent: true}, status(503, ""), 4, backends.Unavailable, 0},
		{"delete", Request{Method: "DELETE"}, status(500, ""), 4, backends.Unavailable, 0},
		{"once", Request{NoRetry: true}, status(503, ""), 1, backends.Unavailable, 0},
		{"not found", Request{}, status(404, ""), 1, backends.NotFound, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tries := 0
				c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
					tries++
					return tt.do(r)
				}), Options{})
				c.jitter = func(d time.Duration) time.Duration { return d - 1 }
				tt.r.Op, tt.r.Ref, tt.r.URL = "get", ref(), parse(t, "http://h/x")
				began := time.Now()
				_, _, _, err := c.Do(t.Context(), tt.r)
				wantKind(t, err, tt.kind)
				if tries != tt.tries || backends.RetryAfter(err) != tt.after {
					t.Errorf("%d tries, after %v; want %d, %v", tries, backends.RetryAfter(err), tt.tries, tt.after)
				}
				if took := time.Since(began); took > maxSleep {
					t.Errorf("it slept %v", took)
				}
			})
		})
	}
	t.Run("recovers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
				if tries++; tries < 4 {
					return response(r, 502, nil, ""), nil
				}
				return response(r, 200, nil, "yes"), nil
			}), Options{})
			if got, err := get(t, c, "http://h/x"); err != nil || got != "yes" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	})
	t.Run("cancelled while waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _ := newTest(t, "http://h", fake(status(429, "25")), Options{})
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			_, _, _, err := c.Do(ctx, Request{Op: "get", URL: parse(t, "http://h")})
			if !errors.Is(err, context.Canceled) || backends.KindOf(err) != backends.Other {
				t.Errorf("got %v", err)
			}
		})
	})
}

// TestClassify: the registry's word comes before the default.
func TestClassify(t *testing.T) {
	tries := 0
	o := Options{Classify: func(op string, ref backends.Ref, status int, _ http.Header, body []byte) error {
		switch string(body) {
		case `"limit"`:
			return &backends.Error{Op: op, Ref: ref, Kind: backends.Quota}
		case `"denied with 200"`:
			return &backends.Error{Op: op, Ref: ref, Kind: backends.Denied}
		case `"slow"`:
			return &backends.Error{Op: op, Ref: ref, Kind: backends.Throttled}
		}
		return nil
	}}
	answer := ""
	status := 0
	c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
		tries++
		return response(r, status, http.Header{"Retry-After": {"100"}}, answer), nil
	}), o)
	for _, tt := range []struct {
		status int
		answer string
		kind   backends.Kind
	}{
		{403, `"limit"`, backends.Quota},
		{403, `"other"`, backends.Denied},
		{200, `"denied with 200"`, backends.Denied},
		{403, `"slow"`, backends.Throttled},
		{200, `<html>log in</html>`, backends.Unavailable},
		{200, `{"a": 1}`, backends.Unavailable}, // not the type that is asked for
	} {
		status, answer, tries = tt.status, tt.answer, 0
		var out string
		err := c.JSON(t.Context(), Request{Op: "get", Ref: ref(), URL: parse(t, "http://h")}, &out)
		wantKind(t, err, tt.kind)
		if tries != 1 {
			t.Errorf("%d %s: %d tries", status, answer, tries)
		}
		if tt.kind == backends.Throttled && backends.RetryAfter(err) != 100*time.Second {
			t.Errorf("the header's Retry-After is lost: %v", backends.RetryAfter(err))
		}
	}
	status, answer = 200, `"fine"`
	var out string
	if err := c.JSON(t.Context(), Request{Op: "get", URL: parse(t, "http://h")}, &out); err != nil || out != "fine" {
		t.Errorf("got %q, %v", out, err)
	}
	answer = `73507350`
	if err := c.JSON(t.Context(), Request{Op: "get", URL: parse(t, "http://h")}, &out); err == nil || strings.Contains(err.Error(), answer) {
		t.Errorf("a decoding error shows the value: %v", err)
	}
}

func TestRefresh(t *testing.T) {
	var token atomic.Value
	token.Store("old")
	var refreshed, served atomic.Int32
	var c *Client
	o := Options{
		Authorize: func(r *http.Request) error {
			r.Header.Set("Authorization", token.Load().(string))
			return nil
		},
		Refresh: func(ctx context.Context) error {
			refreshed.Add(1)
			// Its own requests may be refused without asking for it again.
			if _, _, _, err := c.Do(ctx, Request{Op: "refresh", URL: parse(t, "http://h/refused")}); !errors.Is(err, backends.Denied) {
				t.Errorf("within the refresh: %v", err)
			}
			time.Sleep(time.Second)
			token.Store("new")
			return nil
		},
	}
	rt := fake(func(r *http.Request) (*http.Response, error) {
		served.Add(1)
		if r.Header.Get("Authorization") != "new" || r.URL.Path == "/refused" {
			return response(r, 401, nil, ""), nil
		}
		return response(r, 200, nil, "ok"), nil
	})
	synctest.Test(t, func(t *testing.T) {
		c, _ = newTest(t, "http://h", rt, o)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if got, err := get(t, c, "http://h/x"); err != nil || got != "ok" {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
		wg.Wait()
		if refreshed.Load() != 1 {
			t.Errorf("%d refreshes for 20 requests that failed together", refreshed.Load())
		}
		// Refused again after the refresh: once more and no further.
		refreshed.Store(0)
		served.Store(0)
		_, err := get(t, c, "http://h/refused")
		wantKind(t, err, backends.Denied)
		if refreshed.Load() != 1 || served.Load() != 3 { // with the one of the refresh
			t.Errorf("%d refreshes, %d requests", refreshed.Load(), served.Load())
		}
		// Not for requests without credentials, nor for what others refuse.
		refreshed.Store(0)
		_, _, _, err = c.Do(t.Context(), Request{Op: "get", Ref: ref(), URL: parse(t, "http://h/refused"), NoAuth: true})
		wantKind(t, err, backends.Denied)
		_, err = get(t, c, "http://other/refused")
		wantKind(t, err, backends.Denied)
		if refreshed.Load() != 0 {
			t.Error("a refresh that cannot help")
		}
	})
	o.Refresh = func(context.Context) error { return errors.New("no such account") }
	c, _ = newTest(t, "http://h", rt, o)
	_, err := get(t, c, "http://h/refused")
	wantKind(t, err, backends.Denied)
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		served := 0
		b := NewBudget(3, time.Hour, time.Now)
		c, _ := newTest(t, "http://h", fake(func(r *http.Request) (*http.Response, error) {
			if served++; r.URL.Path == "/slow" {
				return response(r, 429, http.Header{"Retry-After": {"7200"}}, ""), nil
			}
			return response(r, 200, nil, ""), nil
		}), Options{Budget: b})
		for range 3 {
			if _, err := get(t, c, "http://h/x"); err != nil {
				t.Fatal(err)
			}
		}
		_, err := get(t, c, "http://h/x")
		wantKind(t, err, backends.Throttled)
		if after := backends.RetryAfter(err); served != 3 || after < 19*time.Minute || after > 21*time.Minute {
			t.Errorf("%d requests, after %v", served, after)
		}
		if _, err := get(t, c, "http://other/x"); err != nil {
			t.Errorf("another host has its own budget: %v", err)
		}
		time.Sleep(20*time.Minute + time.Second)
		if _, err := get(t, c, "http://h/x"); err != nil {
			t.Errorf("after the wait: %v", err)
		}
		time.Sleep(20*time.Minute - 10*time.Second) // a short wait is waited out
		if _, err := get(t, c, "http://h/x"); err != nil {
			t.Errorf("just before the next one is due: %v", err)
		}
		time.Sleep(time.Hour)
		_, err = get(t, c, "http://h/slow")
		wantKind(t, err, backends.Throttled)
		served = 0
		_, err = get(t, c, "http://h/x")
		wantKind(t, err, backends.Throttled)
		if served != 0 || backends.RetryAfter(err) < time.Hour {
			t.Errorf("asked again although the registry said when: %d, %v", served, err)
		}
	})
}

// TestNothingLeaks: no error or log line shows a token, a query or a signed path.
func TestNothingLeaks(t *testing.T) {
	o := authorized()
	rt := fake(func(r *http.Request) (*http.Response, error) {
		switch r.URL.Path {
		case "/redirect":
			return response(r, 302, http.Header{"Location": {"http://store/" + canary + "?sig=" + canary}}, ""), nil
		case "/bad":
			return response(r, 302, http.Header{"Location": {"http://store:" + canary + "/\x7f"}}, ""), nil
		case "/urlerror":
			return nil, &url.Error{Op: "Get", URL: r.URL.String(), Err: errors.New("broken")}
		}
		return response(r, 403, nil, canary), nil
	})
	c, log := newTest(t, "http://user:"+canary+"@h", rt, o)
	for _, r := range []Request{
		{URL: parse(t, "http://u:"+canary+"@h/x?key="+canary)},
		{URL: parse(t, "http://h/redirect")},
		{URL: parse(t, "http://h/bad")},
		{URL: parse(t, "http://h/urlerror?key="+canary)},
		{URL: parse(t, "http://h/"+canary+"/file"), SecretPath: true},
		{URL: parse(t, "http://store/"+canary)},
	} {
		r.Op, r.Ref = "get", ref()
		_, _, _, err := c.Do(t.Context(), r)
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("error %v", err)
		}
		text, _ := json.Marshal(err)
		if strings.Contains(string(text), canary) {
			t.Errorf("error as JSON %s", text)
		}
	}
	if !strings.Contains(log.String(), "http://h/x") || strings.Contains(log.String(), canary) {
		t.Errorf("log:\n%s", log)
	}
}
