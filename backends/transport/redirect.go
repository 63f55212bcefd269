package transport

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
)

const maxRedirects = 10

// SameOrigin reports whether a and b have the same scheme, host and port.
func SameOrigin(a, b *url.URL) bool {
	return a != nil && b != nil && a.Scheme == b.Scheme &&
		strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "https" {
		return "443"
	}
	return "80"
}

// travels lists the headers that may follow a redirect to another origin.
// Everything else may be a credential: registries invent their own.
func travels(name string) bool {
	switch name {
	case "Accept", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since":
		return true
	}
	return false
}

// follow sends r and its redirects, and returns the last response with its
// address.
func (c *Client) follow(w *watch, r Request) (*http.Response, *url.URL, *failure) {
	u, verb, header, withBody := r.URL, method(r), r.Header, r.Body != nil
	left := false
	for hop := 0; ; hop++ {
		if c.o.Base.Scheme == "https" && u.Scheme != "https" {
			return nil, nil, final(r, backends.Denied, errors.New("the registry refers to an address without encryption"))
		}
		left = left || !SameOrigin(u, c.o.Base)
		req, f := c.prepare(w, r, u, verb, header, withBody, left)
		if f != nil {
			return nil, nil, f
		}
		resp, err := c.rt.RoundTrip(req)
		if err != nil {
			return nil, nil, c.broken(r, err, w)
		}
		if !isRedirect(resp.StatusCode) || r.NoFollow {
			return resp, u, nil
		}
		next, f := target(r, u, resp)
		_, _ = io.CopyN(io.Discard, resp.Body, 2048) // so that the connection can be used again
		_ = resp.Body.Close()                        // nothing more is wanted of it
		switch {
		case f != nil:
			return nil, nil, f
		case hop+1 > maxRedirects:
			return nil, nil, final(r, backends.Unavailable, errors.New("too many redirects"))
		case resp.StatusCode == http.StatusSeeOther && verb == http.MethodPost:
			verb, withBody = http.MethodGet, false
		case verb != http.MethodGet && verb != http.MethodHead && resp.StatusCode < 307:
			// Turned into a GET, a change would seem to succeed.
			return nil, nil, final(r, backends.Unavailable, errors.New("the registry redirects a change to another page"))
		}
		if !SameOrigin(u, next) {
			if withBody {
				return nil, nil, final(r, backends.Denied, errors.New("the registry redirects an upload to another origin"))
			}
			kept := http.Header{}
			for name, values := range header {
				if travels(http.CanonicalHeaderKey(name)) {
					kept[name] = values
				}
			}
			header = kept
		}
		u = next
	}
}

// prepare makes the request of one hop. Credentials are added to this hop
// alone, so no redirect can carry them on.
func (c *Client) prepare(w *watch, r Request, u *url.URL, verb string, header http.Header, withBody, left bool) (*http.Request, *failure) {
	clean := *u
	clean.User, clean.Fragment, clean.RawFragment = nil, "", ""
	req := (&http.Request{Method: verb, URL: &clean, Host: clean.Host, Header: header.Clone(), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(w.ctx)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", c.agent)
	}
	req.Header.Set("Accept-Encoding", "identity")
	if withBody {
		b, err := r.Body()
		if err != nil {
			return nil, final(r, backends.KindOf(err), err)
		}
		req.ContentLength = r.Length
		req.Body = &sending{ReadCloser: b, w: w, after: headerWait(r)}
		if r.Length == 0 {
			_ = b.Close() // an empty body is sent as none
			req.Body = http.NoBody
		}
	}
	if !left && !r.NoAuth && c.o.Authorize != nil {
		if err := c.o.Authorize(req); err != nil {
			if req.Body != nil {
				_ = req.Body.Close() // it was not sent
			}
			if e := (*backends.Error)(nil); errors.As(err, &e) {
				return nil, &failure{err: err, final: true}
			}
			return nil, final(r, backends.Denied, err)
		}
	}
	return req, nil
}

// target reads where a redirect leads.
func target(r Request, from *url.URL, resp *http.Response) (*url.URL, *failure) {
	to, err := from.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" || to.Host == "" || (to.Scheme != "http" && to.Scheme != "https") {
		return nil, final(r, backends.Unavailable, errors.New("the registry redirects to no web address"))
	}
	if from.Scheme == "https" && to.Scheme == "http" {
		return nil, final(r, backends.Denied, errors.New("the registry redirects to an address without encryption"))
	}
	return to, nil
}

func isRedirect(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}
