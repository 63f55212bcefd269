package httpindex

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// jsonEntry is an entry of nginx's (autoindex_format json) or Caddy's
// listing; the two share only name and size.
type jsonEntry struct {
	Name string `json:"name"`
	Size *int64 `json:"size"`

	Type  string `json:"type"`  // nginx: "file", "directory", "other"
	MTime string `json:"mtime"` // nginx: as in HTTP headers

	IsDir   bool   `json:"is_dir"`   // Caddy
	ModTime string `json:"mod_time"` // Caddy: RFC 3339 with nanoseconds
}

// parseJSON reads a JSON listing: exact times and sizes.
func parseJSON(body io.Reader) ([]row, error) {
	d := json.NewDecoder(body)
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		if err != nil && !isJSONFault(err) {
			return nil, err
		}
		if t == nil && err == nil {
			return nil, nil // Caddy's "null": an empty directory
		}
		return nil, errNoIndex
	}
	var rows []row
	for d.More() {
		if len(rows) >= maxEntries {
			return nil, errTooLong
		}
		var e jsonEntry
		if err := d.Decode(&e); err != nil {
			return nil, jsonFault(err)
		}
		if r, ok := e.row(); ok {
			rows = append(rows, r)
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, jsonFault(err)
	}
	return rows, nil
}

func (e jsonEntry) row() (row, bool) {
	r := row{name: strings.TrimSuffix(e.Name, "/"), dir: e.IsDir || e.Type == "directory", size: backends.UnknownSize}
	if r.name == "" || strings.HasPrefix(r.name, ".") || strings.Contains(r.name, "/") || e.Type == "other" {
		return row{}, false
	}
	if r.dir {
		return r, true
	}
	if e.Size != nil && *e.Size >= 0 {
		r.size = *e.Size
	}
	t, err := time.Parse(http.TimeFormat, e.MTime)
	if err != nil {
		t, err = time.Parse(time.RFC3339Nano, e.ModTime)
	}
	if err == nil && t.Unix() > 0 {
		// As the file's Last-Modified will say it.
		r.when, r.seconds, r.exact = t.UTC().Truncate(time.Second), true, true
	}
	return r, true
}

func isJSONFault(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	return errors.As(err, &syntax) || errors.As(err, &kind) || err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)
}

// jsonFault leaves the stream's own errors as they are, and the text of the
// answer out of the others.
func jsonFault(err error) error {
	if isJSONFault(err) {
		return errors.New("the index is not the JSON expected, or is cut off")
	}
	return err
}
