package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// noVerify is the setting that turns off the check of certificates, as the
// Python client names it.
const noVerify = "SREGISTRY_HTTPS_NOVERIFY"

// Limits of the connections; those of requests are beside their code.
const (
	dialTimeout    = 10 * time.Second
	tlsTimeout     = 10 * time.Second
	continueWait   = 2 * time.Second
	idleTimeout    = 90 * time.Second
	idlePerHost    = 64
	maxHeaderBytes = 64 << 10
)

// Options say how one registry is talked to. Every function must be safe for
// concurrent use.
type Options struct {
	// Base is the registry's root. Credentials only ever go to its scheme,
	// host and port. User information in it is ignored: Authorize sends it.
	Base *url.URL
	// Authorize adds credentials to a request. It is called before every
	// attempt that goes to Base's origin, and never once a request has left
	// it. Nil means anonymous.
	Authorize func(*http.Request) error
	// Refresh renews the credentials. It is called once when a request is
	// answered 401, and that request is then sent once more. Requests that
	// fail together share one call. Nil means that nothing can be renewed.
	Refresh func(context.Context) error
	// Classify gives the registry's own meaning of an answer: of every answer
	// outside 2xx, and of a 2xx answer to JSON (a failure told with status
	// 200). Nil, or returning nil, means the default by status. body is at most
	// 64 KiB of a streamed answer. Kind Throttled and Unavailable are tried again.
	Classify func(op string, ref backends.Ref, status int, header http.Header, body []byte) error
	// Budget bounds the requests sent; nil means no bound.
	Budget *Budget
}

// Client talks to one registry, and to the places it refers to. It is safe
// for concurrent use. Close it.
type Client struct {
	o     Options
	rt    http.RoundTripper
	idle  func() // closes idle connections
	agent string
	log   *slog.Logger
	now   func() time.Time
	guard *guard
	auth  renewal
	// jitter gives a random share of d; a field so that tests can fix it.
	jitter func(d time.Duration) time.Duration
}

// New makes a Client. It makes no request. cfg.HTTP's transport is used if
// set (one of type *http.Transport is copied and tightened); its other
// fields are not, because redirects and deadlines are handled here.
func New(cfg backends.Config, o Options) (*Client, error) {
	if o.Base == nil || o.Base.Host == "" || (o.Base.Scheme != "http" && o.Base.Scheme != "https") {
		return nil, &backends.Error{
			Op: "configure", Kind: backends.Invalid,
			Err:  errors.New("the registry's address is not an http or https URL"),
			Hint: "write it as https://HOST",
		}
	}
	base := *o.Base
	base.User = nil
	o.Base = &base
	c := &Client{
		o: o, agent: cfg.UserAgent, log: cfg.Log, now: cfg.Now,
		idle:  func() {},
		guard: newGuard(&base),
		jitter: func(d time.Duration) time.Duration {
			return rand.N(d) //nolint:gosec // spreading load needs no secrecy
		},
	}
	c.auth.turn = make(chan struct{}, 1)
	if c.agent == "" {
		c.agent = "sregistry-fs"
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	var given http.RoundTripper
	if cfg.HTTP != nil {
		given = cfg.HTTP.Transport
	}
	insecure := cfg.Settings != nil && isTrue(cfg.Settings.Get(noVerify))
	c.setTransport(given, insecure)
	return c, nil
}

func (c *Client) setTransport(given http.RoundTripper, insecure bool) {
	var t *http.Transport
	switch g := given.(type) {
	case nil:
		t = &http.Transport{Proxy: http.ProxyFromEnvironment}
	case *http.Transport:
		t = g.Clone()
	default:
		c.rt = given
		return
	}
	if t.DialContext == nil {
		t.DialContext = c.guard.dial
	}
	if t.Proxy != nil {
		t.Proxy = c.guard.proxies(t.Proxy)
	}
	t.TLSHandshakeTimeout = tlsTimeout
	t.ExpectContinueTimeout = continueWait
	t.IdleConnTimeout = idleTimeout
	t.MaxIdleConnsPerHost = idlePerHost
	t.MaxResponseHeaderBytes = maxHeaderBytes
	// A small compressed body can become an endless one.
	t.DisableCompression = true
	// Parallel ranges over one HTTP/2 connection share its window; several
	// HTTP/1.1 connections do not.
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.TLSNextProto = nil
	t.ForceAttemptHTTP2 = false
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	t.TLSClientConfig.NextProtos = nil
	if insecure {
		t.TLSClientConfig.InsecureSkipVerify = true
		c.log.Warn("certificates are not checked", "setting", noVerify)
	}
	c.rt, c.idle = t, t.CloseIdleConnections
}

// Close drops idle connections. Streams that are open stay usable.
func (c *Client) Close() { c.idle() }

// isTrue reads a switch the way the Python client does.
func isTrue(value string, set bool) bool {
	if !set {
		return false
	}
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "yes", "true", "t", "1", "y":
		return true
	}
	return false
}
