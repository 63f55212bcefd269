// Package httpindex makes a plain web server a registry: any server that
// shows an index of its directories (nginx, Apache, Caddy, lighttpd, …), or
// that has a file which lists its images. It reads only.
//
// An image is a file collection/image:tag.simg, with .sif, .img or nothing after the
// tag as well; a file image.sif without a tag is the tag "latest". Collections
// are directories and may be nested. Images at the root belong to the
// collection "library", together with those of a directory of that name.
// Everything else that the index shows is left alone.
//
// How to read it: Driver and dial (this file), file names (names.go), what a
// version is (version.go), the listings (list.go) and their dialects
// (index.go, html.go, json.go, listfile.go), the bytes (read.go).
package httpindex

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
	"github.com/sregistry/sregistry-fs/secrets"
)

// minListAge spares a server whose whole tree has to be walked for a listing,
// and whose one directory may have 100,000 images.
const minListAge = 5 * time.Minute

func baseOption() backends.Option {
	return backends.Option{Name: "base", Env: "SREGISTRY_HTTP_BASE", Usage: "the address of the directory, if the spec does not name it"}
}

func listOption() backends.Option {
	return backends.Option{Name: "list", Env: "SREGISTRY_HTTP_LIST", Usage: "a file that lists the images, as an address or relative to the base; replaces the server's index"}
}

func userOption() backends.Option {
	return backends.Option{Name: "username", Env: "SREGISTRY_HTTP_USERNAME", Usage: "the user name for a server that asks for one"}
}

func passwordOption() backends.Option {
	return backends.Option{Name: "password", Env: "SREGISTRY_HTTP_PASSWORD", Usage: "the password for the user name", Secret: true}
}

// Driver is the entry for the table of drivers.
func Driver() backends.Driver {
	return backends.Driver{
		Scheme:   "http",
		Summary:  "a web server's index of images, such as an image depot (read-only)",
		Location: "https://HOST/PATH",
		Options:  []backends.Option{baseOption(), listOption(), userOption(), passwordOption()},
		Dial:     dial,
	}
}

// backend is one directory of one web server. It is safe for concurrent use.
type backend struct {
	base   *url.URL // its path ends in "/"; no user information
	client *transport.Client
	log    *slog.Logger

	mu    sync.Mutex              // guards the maps; never held while waiting
	forms map[backends.Ref]int    // which of candidates(ref) the index showed last, if not the first
	seen  map[backends.Ref]memory // what Stat has found

	list *listFile // nil without the option
}

// remembered bounds each map of the backend; they start anew when it is reached.
const remembered = 200_000

// listed is a backend with a list file: it can tell everything in one
// request.
type listed struct{ *backend }

var _ interface {
	backends.Backend
	backends.RangeOpener
	backends.Aged
} = (*backend)(nil)

var _ backends.TreeLister = listed{}

// dial makes no request: what is in the cache is served even if the server is away.
func dial(_ context.Context, c backends.Config) (backends.Backend, error) {
	where := c.Location
	if where == "" {
		where = c.Setting(baseOption())
	}
	base, err := url.Parse(where)
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") || base.RawQuery != "" || base.Fragment != "" {
		return nil, &backends.Error{ // without the text: it may hold a password
			Op: "dial", Kind: backends.Invalid, Err: errors.New("the location is not the address of a web directory"),
			Hint: "name it in the spec, as in http:https://depot.example.org/images, or set " + baseOption().Env,
		}
	}
	user, password := base.User.Username(), secrets.Secret{}
	if p, ok := base.User.Password(); ok {
		password = secrets.NewSecret(p)
	}
	base.User = nil
	if !strings.HasSuffix(base.Path, "/") {
		base = base.JoinPath("/")
	}
	if u := c.Setting(userOption()); u != "" {
		user = u
		password, _ = c.Settings.Secret(passwordOption().Env)
	}
	o := transport.Options{Base: base}
	if user != "" {
		if base.Scheme == "http" {
			c.Log.Warn("the password is sent without encryption", "server", base.Host)
		}
		o.Authorize = func(r *http.Request) error {
			r.SetBasicAuth(user, password.Reveal())
			return nil
		}
	}
	b := &backend{base: base, log: c.Log, forms: map[backends.Ref]int{}, seen: map[backends.Ref]memory{}}
	if b.client, err = transport.New(c, o); err != nil {
		return nil, err
	}
	name := c.Setting(listOption())
	if name == "" {
		return b, nil
	}
	u, err := base.Parse(name)
	if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, &backends.Error{
			Op: "dial", Kind: backends.Invalid, Err: errors.New("the list is not a web address or a path"),
			Hint: "set the option list to something like images.txt",
		}
	}
	b.list = &listFile{url: u, turn: make(chan struct{}, 1)}
	return listed{b}, nil
}

// Close drops the connections that are not in use.
func (b *backend) Close() error {
	b.client.Close()
	return nil
}

// MinListAge keeps a mount from walking the server all the time.
func (b *backend) MinListAge() time.Duration { return minListAge }

// at gives the address of a path relative to the base. The path is of
// decoded names; each is one segment, whatever it holds.
func (b *backend) at(path string) *url.URL {
	u := *b.base
	raw := u.EscapedPath()
	for i, name := range strings.Split(path, "/") {
		if i > 0 {
			raw += "/"
		}
		raw += url.PathEscape(name)
	}
	u.Path, u.RawPath = u.Path+path, raw
	return &u
}
