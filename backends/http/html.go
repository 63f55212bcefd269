package httpindex

import (
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/html"

	"github.com/sregistry/sregistry-fs/backends"
)

// parseHTML reads the index pages of nginx, Apache, Caddy, lighttpd and
// others that are built alike: a link for each entry, and after it, before
// the next link or the end of its table row, the time and the size.
func parseHTML(body io.Reader, dir *url.URL) ([]row, error) {
	z := html.NewTokenizer(body)
	z.SetMaxBuf(1 << 20)
	p := page{dir: dir, at: map[string]int{}, now: -1}
	for {
		switch z.Next() {
		case html.ErrorToken:
			if z.Err() != io.EOF {
				return nil, z.Err()
			}
			if len(p.rows) == 0 && !p.isIndex {
				return nil, errNoIndex
			}
			p.finish()
			return p.rows, nil
		case html.StartTagToken, html.SelfClosingTagToken:
			if !p.start(z) {
				return nil, errTooLong
			}
		case html.EndTagToken:
			tag, _ := z.TagName()
			switch string(tag) {
			case "a":
				p.inLink = false
			case "tr", "li", "pre", "table":
				p.finish()
			case "title", "h1":
				p.inTitle = false
			}
		case html.TextToken:
			p.text(z.Text())
		}
	}
}

// page is the state of reading one index page.
type page struct {
	dir     *url.URL
	rows    []row
	at      map[string]int // name to place in rows
	isIndex bool           // it looks like an index, even if empty
	inLink  bool
	inTitle bool

	now      int    // the row whose columns are being read, or -1
	columns  string // the text after its link
	dataSize string // Caddy: the exact size
	dataTime string // Caddy: the time to the second
}

// start takes a start tag; false means too many entries.
func (p *page) start(z *html.Tokenizer) bool {
	name, more := z.TagName()
	switch string(name) {
	case "a":
		p.finish()
		p.inLink = true
	case "hr":
		p.finish()
	case "pre", "table":
		p.isIndex = true
	case "title", "h1":
		p.inTitle = true
	case "td", "time":
	default:
		return true
	}
	tag := string(name)
	for more {
		var key, value []byte
		key, value, more = z.TagAttr()
		switch {
		case tag == "a" && string(key) == "href":
			if len(p.rows) >= maxEntries {
				return false
			}
			p.link(string(value))
		case tag == "td" && string(key) == "data-size" && p.now >= 0:
			p.dataSize = string(value)
		case tag == "time" && string(key) == "datetime" && p.now >= 0:
			p.dataTime = string(value)
		}
	}
	return true
}

func (p *page) link(href string) {
	name, isDir, ok := child(p.dir, href)
	if !ok {
		return
	}
	i, twice := p.at[name] // an icon may be a link of its own
	if !twice {
		i = len(p.rows)
		p.at[name] = i
		p.rows = append(p.rows, row{name: name, dir: isDir, size: backends.UnknownSize})
	}
	p.now = i
}

// longest bounds the text after a link that is looked at.
const longest = 400

func (p *page) text(text []byte) {
	if p.inTitle {
		t := strings.ToLower(string(text))
		p.isIndex = p.isIndex || strings.Contains(t, "index of") || strings.Contains(t, "directory listing") || strings.Contains(t, "listing for")
	}
	if p.now >= 0 && !p.inLink && len(p.columns) < longest {
		p.columns += " " + string(text[:min(len(text), longest)])
	}
}

// finish puts what was read after a link into its row.
func (p *page) finish() {
	if p.now >= 0 && !p.rows[p.now].dir {
		r := &p.rows[p.now]
		if p.dataTime != "" {
			// Caddy writes "Z" whatever the zone is.
			if t, err := time.Parse("2006-01-02T15:04:05Z", p.dataTime); err == nil {
				r.when, r.seconds = t, true
			}
			if n, err := strconv.ParseInt(p.dataSize, 10, 64); err == nil && n >= 0 {
				r.size = n
			}
		} else if p.columns != "" {
			columns(r, strings.Fields(p.columns))
		}
	}
	p.now, p.columns, p.dataSize, p.dataTime = -1, "", "", ""
}

// columns finds a date, a time and after them the size.
func columns(r *row, field []string) {
	for i := 0; i+1 < len(field); i++ {
		for _, layout := range []string{"02-Jan-2006", "2006-01-02", "2006-Jan-02"} {
			day, err := time.Parse(layout, field[i])
			if err != nil {
				continue
			}
			clock, err := time.Parse("15:04:05", field[i+1])
			r.seconds = err == nil
			if err != nil {
				if clock, err = time.Parse("15:04", field[i+1]); err != nil {
					continue
				}
			}
			r.when = day.Add(time.Duration(clock.Hour())*time.Hour + time.Duration(clock.Minute())*time.Minute + time.Duration(clock.Second())*time.Second)
			if i+2 < len(field) && len(field[i+2]) <= 24 && field[i+2] != "-" {
				r.sizeText = field[i+2]
				// This date is nginx's, and nginx rounds with a letter only.
				// Elsewhere a number may be of kilobytes.
				if n, err := strconv.ParseInt(r.sizeText, 10, 64); err == nil && n >= 0 && layout == "02-Jan-2006" {
					r.size = n
				}
			}
			return
		}
	}
}
