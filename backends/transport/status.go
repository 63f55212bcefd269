package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// classify makes the error of an answer outside 2xx.
func (c *Client) classify(r Request, resp *http.Response, text []byte) error {
	if c.o.Classify != nil {
		if err := c.o.Classify(r.Op, r.Ref, resp.StatusCode, resp.Header, text); err != nil {
			return err
		}
	}
	kind := KindOfStatus(resp.StatusCode)
	if kind == backends.Unavailable && resp.Header.Get("Retry-After") != "" {
		kind = backends.Throttled // it says when it will answer, so it did answer
	}
	return &backends.Error{Op: r.Op, Ref: r.Ref, Kind: kind, Err: statusText(resp.StatusCode)}
}

// failed completes a classified error: with the stated time of the next try,
// if it has none.
func (c *Client) failed(err error, status int, h http.Header) *failure {
	if e, ok := err.(*backends.Error); ok && e.After == 0 && (e.Kind == backends.Throttled || e.Kind == backends.Unavailable) {
		if after := retryAfter(h, c.now()); after > 0 {
			told := *e
			told.After = after
			err = &told
		}
	}
	return &failure{err: err}
}

// KindOfStatus is what a status means unless the registry says otherwise.
func KindOfStatus(status int) backends.Kind {
	switch status {
	case 401, 403, 407, 451:
		return backends.Denied
	case 404, 410:
		return backends.NotFound
	case 405, 501, 505:
		return backends.Unsupported
	case 409:
		return backends.Exists
	case 412, 416:
		return backends.Stale
	case 413, 507:
		return backends.Quota
	case 429:
		return backends.Throttled
	case 400, 411, 414, 415, 422, 431:
		return backends.Invalid
	case 408, 421, 425:
		return backends.Unavailable
	}
	if status >= 500 || status < 400 {
		return backends.Unavailable
	}
	return backends.Other
}

func statusText(status int) error {
	if text := http.StatusText(status); text != "" {
		return fmt.Errorf("status %d %s", status, text)
	}
	return fmt.Errorf("status %d", status)
}

// retryAfter reads a Retry-After header: seconds or a date; 0 if there is
// none, or it is not either, or it is past. A day and a bit is the most.
func retryAfter(h http.Header, now time.Time) time.Duration {
	const most = 8 * 24 * time.Hour // the longest window a registry is known to count in is a week
	s := h.Get("Retry-After")
	if n, ok := digits(s); ok {
		if n > int64(most/time.Second) {
			return most
		}
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return min(max(t.Sub(now), 0), most)
	}
	return 0
}

// broken makes the failure of an exchange that brought no (whole) answer. w is
// the attempt's watch, or nil.
func (c *Client) broken(r Request, err error, w *watch) *failure {
	e := &backends.Error{Op: r.Op, Ref: r.Ref, Kind: backends.Unavailable}
	f := &failure{err: e}
	if w != nil && w.ctx.Err() != nil {
		err = context.Cause(w.ctx)
	}
	var (
		inURL     *url.Error
		forbidden *forbiddenAddress
		netErr    net.Error
	)
	if errors.As(err, &inURL) {
		err = inURL.Err // the rest is the URL
	}
	e.Err = err
	switch {
	case errors.Is(err, errStalled):
		e.Kind, f.final = backends.Timeout, true
	case errors.Is(err, context.DeadlineExceeded):
		e.Kind, e.Err, f.final = backends.Timeout, context.DeadlineExceeded, true
	case errors.Is(err, context.Canceled):
		e.Kind, e.Err, f.final = backends.Other, context.Canceled, true
	case errors.Is(err, errClosed):
		e.Kind, f.final = backends.Other, true
	case errors.As(err, &forbidden):
		e.Kind, e.Err, f.final = backends.Denied, forbidden, true
	case certificate(err):
		e.Hint, f.final = "check the registry's certificate and this machine's clock and CA certificates", true
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		e.Err = errors.New("the connection ended before the answer did")
	case errors.As(err, &netErr) && netErr.Timeout():
		e.Kind, e.Err = backends.Timeout, errors.New("no connection in time")
	}
	return f
}

func certificate(err error) bool {
	var (
		a *tls.CertificateVerificationError
		b x509.UnknownAuthorityError
		c x509.HostnameError
		d x509.CertificateInvalidError
	)
	return errors.As(err, &a) || errors.As(err, &b) || errors.As(err, &c) || errors.As(err, &d)
}
