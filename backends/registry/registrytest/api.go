package registrytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The server's own patterns, in its order.
var (
	downloadPath = regexp.MustCompile(`^/containers/(\d+)/download/([^/]+)/?$`)

	searchPatterns = []*regexp.Regexp{
		regexp.MustCompile(`^container/search/collection/(?P<c>.+?)/name/(?P<n>.+?)/tag/(?P<t>.+?)/?$`),
		regexp.MustCompile(`^container/search/collection/(?P<c>.+?)/name/(?P<n>.+?)/?$`),
		regexp.MustCompile(`^container/search/name/(?P<n>.+?)/tag/(?P<t>.+?)/?$`),
		regexp.MustCompile(`^container/search/name/(?P<n>.+?)/?$`),
	}
	recordPatterns = []*regexp.Regexp{
		regexp.MustCompile(`^container/(?P<c>.+?)/(?P<n>.+?):(?P<t>.+?)@(?P<v>.+?)/?$`),
		regexp.MustCompile(`^container/(?P<c>.+?)/(?P<n>.+?)@(?P<v>.+?)/?$`),
		regexp.MustCompile(`^container/(?P<c>.+?)/(?P<n>.+?):(?P<t>.+?)/?$`),
		regexp.MustCompile(`^container/(?P<c>.+?)/(?P<n>.+?)/?$`),
	}
)

func match(patterns []*regexp.Regexp, path string) map[string]string {
	for _, p := range patterns {
		if m := p.FindStringSubmatch(path); m != nil {
			out := map[string]string{}
			for i, name := range p.SubexpNames() {
				if name != "" {
					out[name] = m[i]
				}
			}
			return out
		}
	}
	return nil
}

func (s *Server) routeAPI(path string) (string, http.HandlerFunc) {
	switch path {
	case "collections", "containers":
		return path, func(w http.ResponseWriter, r *http.Request) {
			to := *r.URL
			to.Path += "/"
			w.Header().Set("Location", to.RequestURI())
			html(w, http.StatusMovedPermanently)
		}
	case "collections/":
		return "collections", s.api(s.listCollections, false)
	case "containers/":
		return "containers", s.api(s.listContainers, true)
	case "registry/identity", "registry/identity/":
		return "identity", s.api(func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusOK, map[string]string{"name": "Test Registry", "id": "test", "url": s.domain()})
		}, true)
	case "upload/chunked_upload", "upload/chunked_upload/":
		return "push", s.push
	}
	if id, ok := between(path, "collections/"); ok {
		return "collection-id", s.api(func(w http.ResponseWriter, _ *http.Request) { s.oneCollection(w, id) }, false)
	}
	if id, ok := between(path, "containers/"); ok {
		return "container-id", s.api(func(w http.ResponseWriter, _ *http.Request) { s.oneContainer(w, id) }, true)
	}
	if strings.HasPrefix(path, "labels/search") {
		return "labels", s.api(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, []any{}) }, true)
	}
	if strings.HasPrefix(path, "collection/search/") {
		// It serialises many rows as one: an exception, every time.
		return "collection-search", s.api(func(w http.ResponseWriter, _ *http.Request) { serverError(w) }, true)
	}
	if name, ok := strings.CutPrefix(path, "collection/"); ok && name != "" {
		return "collection", s.api(func(w http.ResponseWriter, _ *http.Request) { s.collectionByName(w, strings.TrimSuffix(name, "/")) }, true)
	}
	if m := match(searchPatterns, path); m != nil {
		return "search", s.api(func(w http.ResponseWriter, _ *http.Request) { s.search(w, m) }, true)
	}
	if m := match(recordPatterns, path); m != nil {
		return "record", func(w http.ResponseWriter, r *http.Request) {
			switch r.Method {
			case http.MethodGet, http.MethodHead:
				if !s.viewLimited(w, r, "record") {
					s.api(func(w http.ResponseWriter, r *http.Request) { s.record(w, r, m) }, true)(w, r)
				}
			case http.MethodDelete:
				s.mu.Lock()
				s.count["record"]--
				s.count["delete"]++
				s.mu.Unlock()
				s.api(func(w http.ResponseWriter, r *http.Request) { s.delete(w, r, m) }, true)(w, r)
			default:
				detail(w, http.StatusMethodNotAllowed, `Method "`+r.Method+`" not allowed.`)
			}
		}
	}
	return "other", notFoundHTML
}

func between(path, prefix string) (int, bool) {
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok || !strings.HasSuffix(rest, "/") {
		return 0, false
	}
	id, err := strconv.Atoi(strings.TrimSuffix(rest, "/"))
	return id, err == nil
}

// api wraps a view of the REST framework: token, then permission, then
// throttle, then the view; as a page for a caller that prefers HTML.
func (s *Server) api(view http.HandlerFunc, permission bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Accept"), "text/html") {
			html(w, http.StatusOK)
			return
		}
		known := false
		if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Token "); ok {
			if _, known = s.userByToken(token); !known {
				detail(w, http.StatusForbidden, "Invalid token.")
				return
			}
		}
		if permission && s.opt.RequireAuth && !known {
			detail(w, http.StatusForbidden, "Authentication credentials were not provided.")
			return
		}
		if !known && s.throttled(w, r) {
			return
		}
		view(w, r)
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that has gone needs no answer
}

func detail(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"detail": text})
}

var chicago = time.FixedZone("CST", -6*3600)

func stamp(t time.Time) string {
	return t.In(chicago).Format("2006-01-02T15:04:05.000000-07:00")
}

// uri is a container's name in listings: of a frozen one with the version in the tag's place.
func (k *container) uri() string {
	word := k.tag
	if k.frozen {
		word = "None"
		if k.version != nil {
			word = *k.version
		}
	}
	if strings.Contains(k.name, "/") {
		return k.name + ":" + word
	}
	return k.collection.name + "/" + k.name + ":" + word
}

// The renderers below are called with mu held.

func (s *Server) renderContainer(k *container, secret bool) map[string]any {
	metadata := k.metadata
	if metadata == nil {
		metadata = map[string]any{}
	}
	out := map[string]any{
		"id": k.id, "name": k.name, "tag": k.tag, "add_date": stamp(k.saved), "metrics": map[string]any{},
		"version": k.version, "frozen": k.frozen, "metadata": metadata, "collection": k.collection.name,
	}
	if secret {
		out["image"] = fmt.Sprintf("%s/containers/%d/download/%s", s.domain(), k.id, k.collection.secret)
	}
	return out
}

func (s *Server) renderCollection(c *collection) map[string]any {
	list := []map[string]any{}
	for _, k := range s.state.containers {
		if k.collection == c {
			list = append(list, map[string]any{
				"name": k.name, "tag": k.tag, "uri": k.uri(), "detail": fmt.Sprintf("%s/containers/%d", s.domain(), k.id),
			})
		}
	}
	return map[string]any{
		"id": c.id, "name": c.name, "add_date": stamp(c.added), "modify_date": stamp(c.changed),
		"metadata": map[string]any{}, "containers": list,
	}
}

func (s *Server) listCollections(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	var all []any
	for _, c := range s.state.collections {
		if !c.private {
			all = append(all, s.renderCollection(c))
		}
	}
	s.mu.Unlock()
	s.page(w, r, all)
}

func (s *Server) listContainers(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	var all []any
	for _, k := range s.state.containers {
		if !k.collection.private {
			all = append(all, s.renderContainer(k, false))
		}
	}
	s.mu.Unlock()
	s.page(w, r, all)
}

// page answers with one page by limit and offset.
func (s *Server) page(w http.ResponseWriter, r *http.Request, all []any) {
	q := r.URL.Query()
	limit, err := strconv.Atoi(q.Get("limit"))
	if err != nil || limit <= 0 {
		limit = 10
	}
	if s.opt.MaxLimit > 0 {
		limit = min(limit, s.opt.MaxLimit)
	}
	offset, err := strconv.Atoi(q.Get("offset"))
	if err != nil || offset < 0 {
		offset = 0
	}
	from := min(offset, len(all))
	to := min(from+limit, len(all))
	link := func(offset int) any {
		v := url.Values{"limit": {strconv.Itoa(limit)}}
		if offset > 0 {
			v.Set("offset", strconv.Itoa(offset))
		}
		return "http://" + r.Host + r.URL.Path + "?" + v.Encode()
	}
	out := map[string]any{"count": len(all), "next": nil, "previous": nil, "results": append([]any{}, all[from:to]...)}
	if to < len(all) {
		out["next"] = link(to)
	}
	if offset > 0 {
		out["previous"] = link(max(0, offset-limit))
	}
	writeJSON(w, http.StatusOK, out)
}

func (s *Server) oneCollection(w http.ResponseWriter, id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.state.collections {
		if c.id == id && !c.private {
			writeJSON(w, http.StatusOK, s.renderCollection(c))
			return
		}
	}
	detail(w, http.StatusNotFound, "Not found.")
}

func (s *Server) oneContainer(w http.ResponseWriter, id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.byID(id); k != nil && !k.collection.private {
		writeJSON(w, http.StatusOK, s.renderContainer(k, false))
		return
	}
	detail(w, http.StatusNotFound, "Not found.")
}

func (s *Server) collectionByName(w http.ResponseWriter, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch c := s.findCollection(strings.ToLower(name)); {
	case c == nil:
		writeJSON(w, http.StatusOK, map[string]any{})
	case c.private: // the view returns nothing, which is an exception
		serverError(w)
	default:
		writeJSON(w, http.StatusOK, s.renderCollection(c))
	}
}

func (s *Server) search(w http.ResponseWriter, m map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fits := func(key, have string) bool { return m[key] == "" || strings.ToLower(m[key]) == have }
	out := []any{}
	for _, k := range s.state.containers { // private ones too
		if fits("c", k.collection.name) && fits("n", k.name) && fits("t", k.tag) {
			out = append(out, s.renderContainer(k, false))
		}
	}
	writeJSON(w, http.StatusOK, out)
}

// lookup finds what a record's address names; the version in it is ignored.
// Called with mu held.
func (s *Server) lookup(m map[string]string, tag string) *container {
	if k := s.find(m["c"], m["n"], tag); k != nil {
		return k
	}
	full := m["c"] + "/" + m["n"]
	return s.find(full, full, tag)
}

func (s *Server) record(w http.ResponseWriter, r *http.Request, m map[string]string) {
	tag := m["t"]
	if tag == "" {
		tag = "latest"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.lookup(m, tag)
	if k == nil {
		detail(w, http.StatusNotFound, "Not found.")
		return
	}
	if over(k.gets, s.opt.ContainerWeekly) || over(k.collection.gets, s.opt.CollectionWeekly) {
		writeJSON(w, http.StatusOK, 429)
		return
	}
	if k.collection.private {
		auth := r.Header.Get("Authorization")
		if auth == "" {
			detail(w, http.StatusForbidden, "Authentication Required")
			return
		}
		c, err := parseAuth(auth)
		switch {
		case err != nil:
			serverError(w)
			return
		case !s.mayPull(c, k.collection):
			detail(w, http.StatusForbidden, "Unauthorized")
			return
		case !s.valid(c, "pull", k.collection.name, m["n"], tag):
			writeJSON(w, http.StatusOK, 400)
			return
		}
	}
	writeJSON(w, http.StatusOK, s.renderContainer(k, true))
}

func over(n, limit int) bool { return limit != NoLimit && n >= limit }

func (s *Server) delete(w http.ResponseWriter, r *http.Request, m map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var k *container
	if m["t"] != "" { // without one, the row would need a null tag
		k = s.lookup(m, m["t"])
	}
	switch {
	case k == nil:
		detail(w, http.StatusNotFound, "Container Not Found")
		return
	case k.frozen:
		detail(w, http.StatusForbidden, fmt.Sprintf("%s/%s:%s is frozen, delete not allowed.", k.collection.name, k.name, k.tag))
		return
	case !s.opt.DeleteWorks:
		serverError(w)
		return
	}
	auth := r.Header.Get("Authorization")
	if auth == "" {
		detail(w, http.StatusForbidden, "Unauthorized")
		return
	}
	c, err := parseAuth(auth)
	switch {
	case err != nil:
		serverError(w)
		return
	case !s.valid(c, "delete", k.collection.name, k.name, k.tag): // ownership is not asked
		detail(w, http.StatusForbidden, "Unauthorized")
		return
	}
	_ = os.Remove(k.file) // may be lost already
	s.drop(k)
	w.WriteHeader(http.StatusNoContent)
}
