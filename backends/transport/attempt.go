package transport

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// Bounds of retrying. Waiting for longer than maxSleep in all is the
// caller's decision: it gets the error, with After.
const (
	maxTries  = 4
	maxSleep  = 30 * time.Second
	firstWait = 500 * time.Millisecond
)

// failure is why an attempt did not succeed.
type failure struct {
	err     error
	final   bool // trying again would not help, whatever the kind
	expired bool // the registry refused the credentials (401)
}

// final is a failure that is not tried again.
func final(r Request, kind backends.Kind, cause error) *failure {
	return &failure{final: true, err: &backends.Error{Op: r.Op, Ref: r.Ref, Kind: kind, Err: cause}}
}

// answer is a good response whose body is still to be read.
type answer struct {
	resp *http.Response
	body *body
}

func (a *answer) close() { _ = a.body.Close() } // nothing was promised about the rest

// run does r until use accepts an answer, r fails for good, or the bounds of
// retrying are reached. use owns the answer.
func (c *Client) run(ctx context.Context, r Request, use func(*answer) *failure) error {
	var slept time.Duration
	renewed := false
	for try := 1; ; try++ {
		if wait, ok := c.o.Budget.take(r.URL.Host); !ok {
			if slept+wait > maxSleep {
				return &backends.Error{
					Op: r.Op, Ref: r.Ref, Kind: backends.Throttled, After: wait,
					Err: errors.New("the requests that this registry allows are used up"),
				}
			}
			slept += wait
			if err := sleep(ctx, wait); err != nil {
				return c.broken(r, err, nil).err
			}
			try--
			continue
		}
		generation := c.auth.current()
		f := c.attempt(ctx, r, use)
		if f == nil {
			return nil
		}
		if f.expired && !renewed && c.o.Refresh != nil && ctx.Value(renewing{}) == nil {
			renewed = true
			if err := c.auth.renew(ctx, generation, c.o.Refresh); err != nil {
				return c.refused(r, err)
			}
			try--
			continue
		}
		wait, again := c.again(r, f, try)
		if !again || slept+wait > maxSleep {
			return f.err
		}
		slept += wait
		if err := sleep(ctx, wait); err != nil {
			return c.broken(r, err, nil).err
		}
	}
}

// again decides whether f deserves another try, and after what wait.
func (c *Client) again(r Request, f *failure, try int) (time.Duration, bool) {
	kind, after := backends.KindOf(f.err), backends.RetryAfter(f.err)
	if kind == backends.Throttled && after > 0 {
		c.o.Budget.block(r.URL.Host, after)
	}
	switch {
	case f.final, r.NoRetry, try >= maxTries:
		return 0, false
	case kind == backends.Throttled: // the request was not carried out: any method may be repeated
	case kind == backends.Unavailable && idempotent(r):
	default:
		return 0, false
	}
	return max(after, c.jitter(firstWait<<try)), true
}

func idempotent(r Request) bool {
	switch r.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return r.Idempotent
}

// attempt sends r once, following redirects.
func (c *Client) attempt(ctx context.Context, r Request, use func(*answer) *failure) *failure {
	w := newWatch(ctx, headerWait(r))
	began := c.now()
	resp, at, f := c.follow(w, r)
	if f != nil {
		w.end(nil)
		c.log.Debug("request failed", "method", method(r), "url", c.shown(r, r.URL), "took", c.now().Sub(began), "kind", backends.KindOf(f.err).Error())
		return f
	}
	c.log.Debug("request", "method", method(r), "url", c.shown(r, at), "status", resp.StatusCode, "took", c.now().Sub(began))
	w.pause()
	a := &answer{resp: resp, body: newBody(resp.Body, w, r, c, expected(resp))}
	if resp.StatusCode < 200 || (resp.StatusCode > 299 && !(r.NoFollow && isRedirect(resp.StatusCode))) {
		defer a.close()
		text, _ := io.ReadAll(io.LimitReader(a.body, errorBody)) // what there is of it: the status already tells the failure
		f := c.failed(c.classify(r, resp, text), resp.StatusCode, resp.Header)
		f.expired = resp.StatusCode == http.StatusUnauthorized && !r.NoAuth && SameOrigin(at, c.o.Base)
		return f
	}
	if r.Check != nil {
		if err := r.Check(resp.StatusCode, resp.Header); err != nil {
			a.close()
			return &failure{err: err, final: true}
		}
	}
	return use(a)
}

// expected is the length that a response states for its body, or -1.
func expected(resp *http.Response) int64 {
	if resp.Request != nil && resp.Request.Method == http.MethodHead {
		return 0
	}
	return resp.ContentLength
}

func method(r Request) string {
	if r.Method == "" {
		return http.MethodGet
	}
	return r.Method
}

// headerWait bounds the silence before an answer's header. After a long body
// the kernel's buffers still have to drain, and the registry may hash it.
func headerWait(r Request) time.Duration {
	switch {
	case r.Timeout > 0:
		return r.Timeout
	case r.Body != nil && (r.Length < 0 || r.Length > 1<<20):
		return 5 * time.Minute
	}
	return stall
}

// shown is what the log may tell of a URL: nothing that can be a credential.
// The path of another origin may be a signed one.
func (c *Client) shown(r Request, u *url.URL) string {
	if r.SecretPath || !SameOrigin(u, c.o.Base) {
		return u.Scheme + "://" + u.Host + "/…"
	}
	return u.Scheme + "://" + u.Host + u.EscapedPath()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// renewing marks the context of Options.Refresh, so that its own requests
// cannot ask for another refresh and wait for themselves.
type renewing struct{}

// renewal makes requests that fail together share one refresh.
type renewal struct {
	turn chan struct{} // holds a value while a refresh runs
	mu   sync.Mutex    // guards done; never held while waiting
	done int           // refreshes that succeeded
}

func (a *renewal) current() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.done
}

// renew calls refresh, unless one has succeeded since generation was read.
func (a *renewal) renew(ctx context.Context, generation int, refresh func(context.Context) error) error {
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-a.turn }()
	if a.current() != generation {
		return nil
	}
	if err := refresh(context.WithValue(ctx, renewing{}, true)); err != nil {
		return err
	}
	a.mu.Lock()
	a.done++
	a.mu.Unlock()
	return nil
}

// refused is the error of a request whose credentials could not be renewed.
func (c *Client) refused(r Request, err error) error {
	if e := (*backends.Error)(nil); errors.As(err, &e) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return c.broken(r, err, nil).err
	}
	return &backends.Error{Op: r.Op, Ref: r.Ref, Kind: backends.Denied, Err: err}
}
