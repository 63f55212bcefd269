package httpindex

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

// Versions. A web server has three ways to say that a file changed, and they
// do not tell the same:
//
//   - a strong ETag ("etag-…"): what it promises is what a Version promises.
//     nginx makes it of the time in seconds and the size, so a file replaced
//     within the second by one as long keeps it;
//   - else the time of change in seconds and the size ("lm-…"), with the same limit;
//   - else the size alone ("size-…"), or nothing ("unknown").
//
// A listing shows no ETag. Its JSON dialects tell the second and the size,
// which is the "lm-…" of the same file. Its HTML dialects tell the minute, in some time
// zone, and often a rounded size: an opaque hash of those texts ("list-…"). Once
// Stat has seen the file, listings that agree with what it saw show Stat's
// version, so that an unchanged image does not seem to change.
//
// Reading checks the answer's header against the record's version, whichever
// sort it is; what disagrees is Stale.

// facts are what an answer's header tells of a file.
type facts struct {
	etag     string    // strong, with its quotes; or empty
	modified time.Time // to the second; zero if not told
	size     int64     // or UnknownSize
}

// memory is what Stat found.
type memory struct {
	facts
	digest backends.Digest // that the list file told then
	listed string          // the text of the listing that agreed; empty before the first
}

func factsOf(h http.Header, status int) facts {
	f := facts{etag: transport.StrongETag(h), size: backends.UnknownSize}
	// Only the one usual form: ranges are pinned by sending it back.
	if t, err := time.Parse(http.TimeFormat, h.Get("Last-Modified")); err == nil && t.Unix() > 0 {
		f.modified = t
	}
	size := h.Get("Content-Length")
	if status == http.StatusPartialContent {
		_, size, _ = strings.Cut(h.Get("Content-Range"), "/")
	}
	if n, err := strconv.ParseInt(size, 10, 64); err == nil && n >= 0 {
		f.size = n
	}
	return f
}

func (f facts) version() string {
	switch {
	case f.etag != "":
		return "etag-" + strings.Trim(f.etag, `"`)
	case !f.modified.IsZero():
		return lmVersion(f.modified, f.size)
	case f.size >= 0:
		return fmt.Sprintf("size-%d", f.size)
	}
	return "unknown"
}

func lmVersion(t time.Time, size int64) string { return fmt.Sprintf("lm-%d-%d", t.Unix(), size) }

// verify tells why the answer with these facts is not rec's version, or nil.
func (f facts) verify(op string, rec backends.Record) error {
	sort, text, _ := strings.Cut(rec.Version, "-")
	ok := false
	switch sort {
	case "etag":
		ok = f.etag == `"`+text+`"`
	case "lm":
		ok = !f.modified.IsZero() && rec.Version == lmVersion(f.modified, f.size)
	case "size":
		ok = rec.Version == fmt.Sprintf("size-%d", f.size)
	case "list":
		r, found := parseListed(rec.Attributes["listed"])
		ok = found && r.version() == rec.Version && r.agrees(f, backends.Digest{})
	case "unknown":
		ok = true
	}
	if !ok {
		return &backends.Error{Op: op, Ref: rec.Ref, Kind: backends.Stale}
	}
	return nil
}

// pin is what a range request sends so that a changed file is refused.
func pin(version string) string {
	sort, text, _ := strings.Cut(version, "-")
	switch sort {
	case "etag":
		return `"` + text + `"`
	case "lm":
		seconds, _, _ := strings.Cut(text, "-")
		if n, err := strconv.ParseInt(seconds, 10, 64); err == nil {
			return time.Unix(n, 0).UTC().Format(http.TimeFormat)
		}
	}
	return ""
}

// row is one file or directory as a listing shows it.
type row struct {
	name     string
	dir      bool
	when     time.Time // zero if not told; UTC assumed where the zone is not told
	exact    bool      // when is in UTC and to the second
	seconds  bool      // when is to the second
	size     int64     // exact, or UnknownSize
	sizeText string    // as shown, for the version; may be rounded
	digest   backends.Digest
}

// version of an image that only a listing has shown.
func (r row) version() string {
	if r.exact && r.size >= 0 {
		return lmVersion(r.when, r.size)
	}
	sum := sha256.Sum256([]byte(r.listed()))
	return "list-" + hex.EncodeToString(sum[:8])
}

// listed is the row as a text that parseListed reads back: what a record of it
// carries, so that a later process can compare.
func (r row) listed() string {
	when, resolution := "-", "m"
	if !r.when.IsZero() {
		when = strconv.FormatInt(r.when.Unix(), 10)
	}
	if r.seconds {
		resolution = "s"
	}
	if r.exact {
		resolution = "u"
	}
	text := r.sizeText
	if text == "" {
		text = "-"
	}
	return fmt.Sprintf("%s %s %d %s %s", when, resolution, r.size, text, r.digest)
}

func parseListed(s string) (row, bool) {
	field := strings.Split(s, " ")
	if len(field) != 5 {
		return row{}, false
	}
	r := row{exact: field[1] == "u", seconds: field[1] == "s" || field[1] == "u", sizeText: field[3]}
	if r.sizeText == "-" {
		r.sizeText = ""
	}
	if field[0] != "-" {
		n, err := strconv.ParseInt(field[0], 10, 64)
		if err != nil {
			return row{}, false
		}
		r.when = time.Unix(n, 0).UTC()
	}
	var err error
	if r.size, err = strconv.ParseInt(field[2], 10, 64); err != nil {
		return row{}, false
	}
	r.digest, _ = backends.ParseDigest(field[4])
	return r, r.listed() == s
}

// agrees reports whether the row can be about the file with these facts.
func (r row) agrees(f facts, d backends.Digest) bool {
	switch {
	case r.size >= 0 && f.size >= 0 && r.size != f.size:
		return false
	case !r.digest.IsZero() && !d.IsZero() && r.digest != d:
		return false
	case r.when.IsZero() || f.modified.IsZero():
		return true
	}
	resolution := time.Minute
	if r.seconds {
		resolution = time.Second
	}
	off := f.modified.Truncate(resolution).Sub(r.when)
	if r.exact {
		return off == 0
	}
	// The server's time zone is not known, but there are not many.
	return off%(15*time.Minute) == 0 && off.Abs() <= 14*time.Hour
}

// recordOf is what a listing tells of an image, with Stat's version if Stat
// saw the same file.
func (b *backend) recordOf(ref backends.Ref, f found) backends.Record {
	rec := backends.Record{
		Ref: ref, Version: f.row.version(), Digest: f.row.digest, Size: f.row.size,
		Attributes: map[string]string{"path": f.path, "listed": f.row.listed()},
		URL:        b.at(f.path).String(),
	}
	if f.row.exact {
		rec.Created = f.row.when
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if f.form > 0 && ref.Check() == nil {
		if len(b.forms) >= remembered {
			clear(b.forms)
		}
		b.forms[ref] = f.form
	} else {
		delete(b.forms, ref)
	}
	m, ok := b.seen[ref]
	if !ok {
		return rec
	}
	text := f.row.listed()
	if (m.listed != "" && m.listed != text) || !f.row.agrees(m.facts, m.digest) {
		delete(b.seen, ref) // it changed since
		return rec
	}
	m.listed = text
	b.seen[ref] = m
	rec.Version, rec.Word = m.version(), m.word()
	return rec
}

// word is the ETag as people see it in a browser.
func (f facts) word() string { return strings.Trim(f.etag, `"`) }

// validator is equal for answers from the same bytes, as far as the server
// tells: never from the size alone.
func (f facts) validator() string {
	if f.etag == "" && f.modified.IsZero() {
		return ""
	}
	return f.version()
}

// remember keeps what Stat found, and gives the record of it.
func (b *backend) remember(ref backends.Ref, path string, f facts, r row) backends.Record {
	b.mu.Lock()
	if len(b.seen) >= remembered {
		clear(b.seen)
	}
	b.seen[ref] = memory{facts: f, digest: r.digest}
	b.mu.Unlock()
	rec := backends.Record{
		Ref: ref, Version: f.version(), Word: f.word(), Digest: r.digest, Size: f.size, Created: f.modified,
		Attributes: map[string]string{"path": path}, URL: b.at(path).String(), Full: true,
	}
	if f.etag != "" {
		rec.Attributes["etag"] = f.etag
	}
	if !f.modified.IsZero() {
		rec.Attributes["last-modified"] = f.modified.Format(http.TimeFormat)
	}
	return rec
}

// order gives the paths at which to look for ref, the likeliest first.
func (b *backend) order(ref backends.Ref) []string {
	paths := candidates(ref)
	b.mu.Lock()
	form := b.forms[ref]
	b.mu.Unlock()
	if form == 0 || form >= len(paths) {
		return paths
	}
	first := paths[form]
	return append([]string{first}, slices.Delete(paths, form, form+1)...)
}

func sortedRefs(images map[backends.Ref]found) []backends.Ref {
	return slices.SortedFunc(maps.Keys(images), func(a, b backends.Ref) int { return strings.Compare(a.String(), b.String()) })
}
