package httpindex

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

// listFile is the file that stands in for the server's index. What was
// read of it last is kept, because Stat wants one line of it; it is used again only
// after the server has said that the file is still the same.
type listFile struct {
	url  *url.URL
	turn chan struct{} // held while asking; guards the fields below
	got  facts
	by   map[backends.Ref]found
}

// images gives what the list says now, with one request, or two if it changed.
// The map is not changed afterwards.
func (b *backend) images(ctx context.Context, op string, ref backends.Ref, reload bool) (map[backends.Ref]found, error) {
	l := b.list
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, &backends.Error{Op: op, Ref: ref, Err: context.Cause(ctx)}
	}
	defer func() { <-l.turn }()
	req := transport.Request{Op: op, Ref: ref, URL: l.url}
	if !reload && l.by != nil {
		h, size, err := b.client.Head(ctx, req)
		if err == nil {
			now := factsOf(h, http.StatusOK)
			now.size = size
			if (now.etag != "" || !now.modified.IsZero()) && now == l.got {
				return l.by, nil
			}
		}
	}
	var got facts
	req.Check = func(status int, h http.Header) error {
		got = factsOf(h, status)
		return nil
	}
	st, err := b.client.Stream(ctx, req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }()
	rows, skipped, err := parseList(&bounded{r: st, left: maxIndexBytes})
	if err != nil {
		if backends.KindOf(err) != backends.Other || ctx.Err() != nil {
			return nil, err
		}
		return nil, &backends.Error{Op: op, Ref: ref, Kind: backends.Invalid, Err: err, Hint: "look at the file that the option list names"}
	}
	if skipped > 0 {
		b.log.Warn("the list of images has lines that are no paths below the base", "lines", skipped)
	}
	images := map[backends.Ref]found{}
	for _, r := range rows {
		pick(images, r.name, r)
	}
	l.got, l.by = got, images
	return images, nil
}

// parseList reads a list of images: a text with one path on each line,
// optionally followed by a tab and the size in bytes, and a tab and the
// SHA-256; or a JSON array of paths or of {"path", "size", "sha256"}. Paths are
// relative to the base and not percent-encoded. Blank lines and lines that
// start with "#" are comments. skipped counts what is neither.
func parseList(body io.Reader) (rows []row, skipped int, err error) {
	r := bufio.NewReader(body)
	first := byte(0)
	for {
		b, err := r.Peek(1)
		if err == io.EOF {
			return nil, 0, nil
		}
		if err != nil {
			return nil, 0, err
		}
		if first = b[0]; first != ' ' && first != '\n' && first != '\r' && first != '\t' {
			break
		}
		_, _ = r.Discard(1) // cannot fail: it was peeked
	}
	add := func(path, size, sum string) {
		if len(rows) >= maxEntries {
			return
		}
		if row, ok := listRow(path, size, sum); ok {
			rows = append(rows, row)
		} else {
			skipped++
		}
	}
	if first == '[' {
		err = eachJSON(r, add)
	} else {
		err = eachLine(r, add)
	}
	if err == nil && len(rows) >= maxEntries {
		err = errTooLong
	}
	return rows, skipped, err
}

func eachLine(r io.Reader, add func(path, size, sum string)) error {
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := bytes.TrimSuffix(s.Bytes(), []byte("\r"))
		if len(bytes.TrimSpace(line)) == 0 || line[0] == '#' {
			continue
		}
		path, rest, _ := strings.Cut(string(line), "\t")
		size, sum, _ := strings.Cut(rest, "\t")
		add(path, size, sum)
	}
	return s.Err()
}

func eachJSON(r io.Reader, add func(path, size, sum string)) error {
	d := json.NewDecoder(r)
	if _, err := d.Token(); err != nil {
		return jsonFault(err)
	}
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return jsonFault(err)
		}
		var e struct {
			Path   string      `json:"path"`
			Size   json.Number `json:"size"`
			SHA256 string      `json:"sha256"`
		}
		if json.Unmarshal(raw, &e.Path) != nil && json.Unmarshal(raw, &e) != nil {
			e.Path = "" // counted as skipped
		}
		add(e.Path, e.Size.String(), e.SHA256)
	}
	_, err := d.Token()
	return jsonFault(err)
}

// listRow checks one entry of a list.
func listRow(path, size, sum string) (row, bool) {
	path = strings.TrimPrefix(path, "./")
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." {
			return row{}, false
		}
	}
	r := row{name: path, size: backends.UnknownSize}
	if size != "" {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil || n < 0 {
			return row{}, false
		}
		r.size = n
	}
	if sum != "" {
		d, ok := backends.NewDigest("sha256", sum)
		if !ok {
			return row{}, false
		}
		r.digest = d
	}
	return r, true
}
