package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

const hintThrottled = "the registry limits requests per address and day; what is cached stays usable"

var errAsked = errors.New("the registry said not to ask again yet")

// viewPause is how long a view that refused without a time is left alone. Its
// counter runs for a day, but there is one in each of several server processes.
const viewPause = time.Hour

// reply is what the server answered instead of a success. It is the cause of
// every error that comes from an answer.
type reply struct {
	status int
	bare   int       // the number that was the body of a 200, or 0
	date   time.Time // of the answer, by the server's clock; zero if not told
	text   string
}

func (r *reply) Error() string { return r.text }

// refused reports whether this is how the server answers a signature of
// another hour: 403, 500 from plain views, or 400 within a 200.
func (r *reply) refused() bool {
	return r.status == http.StatusForbidden || r.status == http.StatusInternalServerError || r.bare == http.StatusBadRequest
}

// statusOf gives the status of the answer that err comes from, or 0.
func statusOf(err error) int {
	var r *reply
	if errors.As(err, &r) {
		return r.status
	}
	return 0
}

// classify gives the server's meaning of an answer. The kinds of 403 differ by
// content type and length: JSON is permission, a page is the limit of a view,
// nothing is the weekly limit of downloads. A 500 is an exception in the
// server, which trying again at once would only raise again: kind Other, for
// the caller to interpret.
func (b *registry) classify(op string, ref backends.Ref, status int, header http.Header, body []byte) error {
	r := &reply{status: status, text: fmt.Sprintf("status %d %s", status, http.StatusText(status))}
	r.date, _ = http.ParseTime(header.Get("Date"))
	e := &backends.Error{Op: op, Ref: ref, Err: r}
	isJSON := strings.HasPrefix(header.Get("Content-Type"), "application/json")
	if status >= 200 && status <= 299 {
		switch string(bytes.TrimSpace(body)) {
		case "400":
			r.bare, r.text = 400, "the registry does not accept the signature"
			e.Kind, e.Hint = backends.Denied, "check the token and the clock of this machine"
		case "429":
			r.bare, r.text = 429, "the weekly limit of downloads is reached"
			e.Kind = backends.Quota
		default:
			return nil
		}
		return e
	}
	if isJSON {
		r.text += detailOf(body)
	}
	switch status {
	case http.StatusForbidden:
		switch {
		case isJSON:
			e.Kind = backends.Denied
		case len(bytes.TrimSpace(body)) == 0:
			e.Kind, r.text = backends.Quota, "the weekly limit of downloads is reached"
		case op == opList:
			e.Kind = backends.Denied // listings have no such limit: something in front of the server
		default:
			e.Kind, e.After, e.Hint = backends.Throttled, viewPause, hintThrottled
			r.text = "the registry's limit of views per day is reached"
		}
	case http.StatusTooManyRequests:
		e.Kind, e.Hint = backends.Throttled, hintThrottled
		if header.Get("Retry-After") == "" {
			e.After = viewPause
		}
	case http.StatusNotFound:
		e.Kind = backends.NotFound
	case http.StatusRequestEntityTooLarge:
		e.Kind, e.Hint = backends.Quota, "the image is larger than the registry's web server accepts (client_max_body_size)"
	case http.StatusInternalServerError:
		e.Kind = backends.Other
	default:
		return nil
	}
	return e
}

// detailOf quotes the server's own word on an error, within reason.
func detailOf(body []byte) string {
	var d struct{ Detail string }
	if json.Unmarshal(body, &d) != nil || d.Detail == "" || len(d.Detail) > 200 {
		return ""
	}
	return ": " + strconv.QuoteToASCII(d.Detail)
}

// cause gives the answer that err comes from, to be wrapped once more; or err.
func cause(err error) error {
	var r *reply
	if errors.As(err, &r) {
		return r
	}
	return err
}

// serverFault turns what classify left open into the server's own fault.
func serverFault(err error, hint string) error {
	var e *backends.Error
	if !errors.As(err, &e) || e.Kind != backends.Other || statusOf(err) == 0 {
		return err
	}
	told := *e
	told.Kind, told.Hint = backends.Unavailable, hint
	return &told
}

// wireContainer is a container in lists (without image) and as a record.
type wireContainer struct {
	ID         int64                      `json:"id"`
	Name       string                     `json:"name"`
	Tag        string                     `json:"tag"`
	Collection string                     `json:"collection"`
	Version    *string                    `json:"version"`
	Frozen     bool                       `json:"frozen"`
	AddDate    string                     `json:"add_date"`
	Metadata   map[string]json.RawMessage `json:"metadata"`
	Image      string                     `json:"image"` // carries the collection's secret
}

// wireCollection is a collection in lists and by itself.
type wireCollection struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	Containers []struct {
		Name   string `json:"name"`
		Tag    string `json:"tag"`
		Detail string `json:"detail"`
	} `json:"containers"`
}

// The addresses within records, by their paths: the host in them is what
// the server was told its name is, which is often not where it is reached.
var (
	detailPath   = regexp.MustCompile(`/containers/(\d+)/?$`)
	downloadPath = regexp.MustCompile(`/containers/(\d+)/download/([^/?#]+)/?$`)
)

// collectionSecret takes the secret out of a record's download address, or "".
func collectionSecret(image string) string {
	u, err := url.Parse(image)
	if err != nil {
		return ""
	}
	m := downloadPath.FindStringSubmatch(u.Path)
	if m == nil {
		return ""
	}
	return m[2]
}

// recordOf makes a Record of a container. The version is the container's
// id: it changes with every overwrite and stays when the server's own word
// for the version turns from an MD5 into a SHA-256 of the same bytes.
// add_date is no creation time, since it moves with every download.
func (b *registry) recordOf(w wireContainer) backends.Record {
	rec := b.listed(refOf(w.Collection, w.Name, w.Tag), w.ID)
	rec.Frozen, rec.Full = w.Frozen, true
	if w.Version != nil {
		rec.Word = *w.Version
		rec.Digest = digestOf(rec.Word)
	}
	rec.Attributes = map[string]string{}
	if w.AddDate != "" {
		rec.Attributes["add_date"] = w.AddDate
	}
	for k, raw := range w.Metadata {
		if v, ok := attribute(k, raw); ok {
			rec.Attributes[k] = v
		}
	}
	return rec
}

// listed makes the Record of a container of which only the names and the id
// are known.
func (b *registry) listed(ref backends.Ref, id int64) backends.Record {
	version := strconv.FormatInt(id, 10)
	return backends.Record{
		Ref: ref, Version: version, Size: backends.UnknownSize,
		URL: b.at(false, "containers", version).String(),
	}
}

// digestOf reads the server's word for a version: an MD5 right after the
// upload, "sha256." and hex once its worker ran; of anything else the
// algorithm is not certain.
func digestOf(word string) backends.Digest {
	if d, ok := backends.ParseDigest(word); ok {
		return d
	}
	d, _ := backends.NewDigest("md5", word)
	return d
}

// attribute gives a metadata field as text. Fields that may hold an address
// with a credential in it are left out.
func attribute(key string, raw json.RawMessage) (string, bool) {
	switch key {
	case "image", "build_metadata", "builder", "build_finish":
		return "", false
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		var compact bytes.Buffer
		if json.Compact(&compact, raw) != nil {
			return "", false
		}
		s = compact.String()
	}
	low := strings.ToLower(s)
	for _, sign := range []string{"/download/", "signature=", "token=", "x-goog-", "x-amz-"} {
		if strings.Contains(low, sign) {
			return "", false
		}
	}
	return s, true
}
