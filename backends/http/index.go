package httpindex

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

// Bounds of a listing. The largest public depot has about 130,000 images in
// one directory, in 25 MB of HTML.
const (
	maxIndexBytes = 128 << 20
	maxEntries    = 500_000
)

// index asks for the server's listing of one directory (relative to the
// base, "" or ending in "/"): one request.
func (b *backend) index(ctx context.Context, op string, ref backends.Ref, dir string) ([]row, error) {
	u := b.at(dir)
	var kind string
	st, err := b.client.Stream(ctx, transport.Request{
		Op: op, Ref: ref, URL: u,
		Header: http.Header{"Accept": {"application/json, text/html;q=0.9, */*;q=0.1"}},
		Check: func(_ int, h http.Header) error {
			kind, _, _ = strings.Cut(h.Get("Content-Type"), ";")
			kind = strings.ToLower(strings.TrimSpace(kind))
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }()
	body := bufio.NewReader(&bounded{r: st, left: maxIndexBytes})
	var rows []row
	switch kind {
	case "application/json", "text/json":
		rows, err = parseJSON(body)
	case "text/html", "application/xhtml+xml":
		rows, err = parseHTML(body, u)
	default:
		err = errNoIndex
	}
	switch e := (*backends.Error)(nil); {
	case err == nil:
		return rows, nil
	case errors.As(err, &e): // the stream's own
		return nil, err
	case errors.Is(err, errNoIndex):
		return nil, &backends.Error{
			Op: op, Ref: ref, Kind: backends.Unsupported, Err: err,
			Hint: "turn on the server's index of directories, or name a file that lists the images with the option list",
		}
	case errors.Is(err, errTooLong):
		return nil, &backends.Error{Op: op, Ref: ref, Kind: backends.Unsupported, Err: err, Hint: "name a file that lists the images with the option list"}
	}
	return nil, &backends.Error{Op: op, Ref: ref, Kind: backends.Unavailable, Err: err}
}

var (
	errNoIndex = errors.New("the answer is no index of a directory")
	errTooLong = fmt.Errorf("the index is longer than %d MiB or %d entries", maxIndexBytes>>20, maxEntries)
)

// bounded fails where io.LimitReader would pretend that the end is there.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}

// child reads a link of the index at dir: the name it leads to, if that is a
// file or directory right below dir. Everything else (up, elsewhere, other
// columns to sort by) is no child.
func child(dir *url.URL, href string) (name string, isDir, ok bool) {
	if i := strings.IndexByte(href, ':'); i > 0 && !strings.ContainsAny(href[:i], "/?#") {
		// "hello:1.2.simg", which some servers do not escape, reads like a scheme.
		switch strings.ToLower(href[:i]) {
		case "http", "https", "javascript", "mailto", "ftp", "data", "about":
		default:
			href = "./" + href
		}
	}
	u, err := dir.Parse(href)
	if err != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" || !transport.SameOrigin(u, dir) {
		return "", false, false
	}
	// Compared decoded: servers differ in what they escape.
	rest, below := strings.CutPrefix(u.EscapedPath(), dir.EscapedPath())
	if !below {
		above, err := url.PathUnescape(u.EscapedPath())
		if err != nil || !strings.HasPrefix(above, dir.Path) {
			return "", false, false
		}
		// Cut as many segments as dir has.
		segments := strings.SplitN(u.EscapedPath(), "/", strings.Count(dir.EscapedPath(), "/")+1)
		rest = segments[len(segments)-1]
	}
	rest, isDir = strings.CutSuffix(rest, "/")
	name, err = url.PathUnescape(rest)
	if err != nil || name == "" || name == "." || name == ".." || strings.Contains(name, "/") || strings.HasPrefix(name, ".") {
		return "", false, false
	}
	return name, isDir, true
}
