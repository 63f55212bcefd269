package registry

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

// Listings are allowed again after these times: with a token they are free, and
// without one each costs 2 of 100 requests a day.
const (
	listAgeToken     = time.Hour
	listAgeAnonymous = 6 * time.Hour
)

// registry is one server. It is safe for concurrent use.
type registry struct {
	root      *url.URL // without slash at the end
	cred      credentials
	showToken bool // the token itself may be sent
	client    *transport.Client
	log       *slog.Logger
	now       func() time.Time
	sleep     func(context.Context, time.Duration) error
	offset    atomic.Int64 // the server's clock minus ours, in nanoseconds
	rate      atomic.Int64 // of the last upload, in bytes a second; 0 means not known

	mu      sync.Mutex           // guards the maps; never held across a request
	secrets map[string]string    // by collection: opens its downloads. In memory only
	private map[string]bool      // collections whose records need a signature
	shut    map[string]time.Time // by view: no request before then
}

var (
	_ backends.Backend    = (*registry)(nil)
	_ backends.TreeLister = (*registry)(nil)
	_ backends.Pusher     = (*registry)(nil)
	_ backends.Deleter    = (*registry)(nil)
	_ backends.Aged       = (*registry)(nil)
)

// Close releases connections and forgets the collections' secrets.
func (b *registry) Close() error {
	b.client.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.secrets)
	return nil
}

// MinListAge follows from the 100 requests a day that callers without a token share.
func (b *registry) MinListAge() time.Duration {
	if b.showToken {
		return listAgeToken
	}
	return listAgeAnonymous
}

// tokenHeader is the header that lifts the limit on API requests, or "".
func (b *registry) tokenHeader() string {
	if !b.showToken {
		return ""
	}
	return "Token " + b.cred.token.Reveal()
}

// at gives the address of path elements below the root; each is escaped. slash
// ends it with "/", without which listings answer with a redirect.
func (b *registry) at(slash bool, elements ...string) *url.URL {
	u := *b.root
	raw := u.EscapedPath()
	for _, e := range elements {
		u.Path += "/" + e
		raw += "/" + url.PathEscape(e)
	}
	if slash {
		u.Path += "/"
		raw += "/"
	}
	u.RawPath = raw
	return &u
}

// The views that the server counts, each for itself.
const (
	viewRecord   = "record"
	viewPush     = "push"
	viewUpload   = "upload"
	viewDownload = "download"
	// anonymous stands for all API views together, for callers without a token.
	anonymous = "anonymous"
)

// call is one request to a view.
type call struct {
	transport.Request
	auth string // Authorization header, or ""
	view string // what the server counts it as; "" if it does not
	api  bool   // it also counts as anonymous, unless auth is a token
	form string // content type of the request's body; "" means JSON
}

func (c call) views() []string {
	var out []string
	if c.view != "" {
		out = append(out, c.view)
	}
	if c.api && !strings.HasPrefix(c.auth, "Token ") {
		out = append(out, anonymous)
	}
	return out
}

// prepare refuses what the server would refuse unseen, and sets the header.
func (b *registry) prepare(c *call) error {
	c.NoAuth = true // the header below is the credential
	c.Header = http.Header{}
	if c.auth != "" {
		c.Header.Set("Authorization", c.auth)
	}
	if c.Body != nil && c.form == "" {
		c.form = "application/json"
	}
	if c.form != "" {
		c.Header.Set("Content-Type", c.form)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	for _, v := range c.views() {
		if wait := b.shut[v].Sub(now); wait > 0 {
			return &backends.Error{Op: c.Op, Ref: c.Ref, Kind: backends.Throttled, After: wait, Err: errAsked, Hint: hintThrottled}
		}
	}
	return nil
}

// note remembers that a view is used up.
func (b *registry) note(c call, err error) {
	after := backends.RetryAfter(err)
	if after <= 0 || backends.KindOf(err) != backends.Throttled {
		return
	}
	view := c.view
	if statusOf(err) == http.StatusTooManyRequests || view == "" {
		view = anonymous
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut[view] = b.now().Add(after)
}

// json does a call and decodes its answer into out, which may be nil.
func (b *registry) json(ctx context.Context, c call, out any) error {
	if err := b.prepare(&c); err != nil {
		return err
	}
	err := b.client.JSON(ctx, c.Request, out)
	b.note(c, err)
	return err
}
