// Package registrytest is an in-process Singularity Registry Server: the
// behaviour of version 2.1.2 as it is shipped, faults included, for tests of
// anything that talks to one. Options turn single faults and limits off.
//
// It needs no testing.TB, so that a program can serve it too (see serve).
package registrytest

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// NoLimit, as a limit in Options, turns that limit off.
const NoLimit = -1

// User is an account of the registry.
type User struct {
	Name      string
	Token     string // 40 hex digits in a real registry
	Superuser bool   // may push anywhere, but only an owner's upload is stored
}

// Options choose what differs from a registry as shipped. The zero value is the
// shipped one, without users, its limits on.
type Options struct {
	// Addr to listen on; empty means a free port of 127.0.0.1.
	Addr string
	// Dir keeps the images; empty means a temporary folder that Close removes.
	Dir string
	// Now is the server's clock; nil means the real one.
	Now func() time.Time
	// Users are the accounts.
	Users []User
	// DomainName is what the addresses in answers start with; empty means the
	// server's own URL. A real one is often misconfigured.
	DomainName string

	// DeleteWorks repairs DELETE, which always answers 500 as shipped.
	DeleteWorks bool
	// Worker replaces a new image's md5 with its sha256 at once; without it
	// that happens when RunWorker is called.
	Worker bool
	// RequireAuth is API_REQUIRE_AUTH: only Token callers may use most views.
	RequireAuth bool
	// PrivateByDefault makes collections that a push creates private.
	PrivateByDefault bool
	// NoUserCollections lets only superusers push.
	NoUserCollections bool
	// PushDisabled is DISABLE_BUILDING: every push is refused.
	PushDisabled bool
	// MaxLimit bounds the limit parameter of listings; zero means no bound, as shipped.
	MaxLimit int
	// NoDate leaves the Date header out.
	NoDate bool

	// NoLimits turns every request and download limit off.
	NoLimits bool
	// ViewLimit is VIEW_RATE_LIMIT, a day, address and view; zero means 50.
	ViewLimit int
	// AnonLimit is API_ANON_THROTTLE_RATE, a day and address; zero means 100.
	AnonLimit int
	// ContainerWeekly and CollectionWeekly are the download limits; zero means 100.
	ContainerWeekly, CollectionWeekly int
	// MaxBody is nginx's client_max_body_size in bytes; zero means 10024 MiB.
	MaxBody int64

	// DownloadRate bounds each download in bytes a second; zero means unbounded.
	DownloadRate int64
}

// Server is a running registry. Its methods are safe for concurrent use.
type Server struct {
	// URL is the root, without a slash at its end.
	URL string

	opt    Options
	srv    *httptest.Server
	dir    string
	tmpDir bool
	done   chan struct{}

	mu    sync.Mutex // guards all below; never held while bytes move
	state state
	limit limiter
	count map[string]int
	sent  int64 // bytes of images sent
	recv  int64 // bytes of uploads received
	fault func(endpoint string, r *http.Request) *Fault
	rate  int64
}

// New starts a registry. Close it.
func New(o Options) (*Server, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
		if o.NoLimits {
			*p = NoLimit
		}
	}
	def(&o.ViewLimit, 50)
	def(&o.AnonLimit, 100)
	def(&o.ContainerWeekly, 100)
	def(&o.CollectionWeekly, 100)
	if o.MaxBody == 0 {
		o.MaxBody = 10024 << 20
	}
	s := &Server{opt: o, dir: o.Dir, done: make(chan struct{}), count: map[string]int{}, rate: o.DownloadRate}
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "registrytest-")
		if err != nil {
			return nil, err
		}
		s.dir, s.tmpDir = dir, true
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "_upload"), 0o700); err != nil {
		return nil, err
	}
	addr := o.Addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s.srv = &httptest.Server{Listener: l, Config: &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: time.Minute,
		ErrorLog:          log.New(io.Discard, "", 0), // faults cut connections on purpose
	}}
	s.srv.Start()
	s.URL = s.srv.URL
	return s, nil
}

// Close stops the server and removes a temporary folder.
func (s *Server) Close() {
	close(s.done)
	s.srv.CloseClientConnections()
	s.srv.Close()
	if s.tmpDir {
		_ = os.RemoveAll(s.dir) // what is left is a temporary folder
	}
}

// Count gives how many requests an endpoint has had: collections, collection-id,
// containers, container-id, collection, record, delete, search,
// collection-search, labels, identity, push, upload, download,
// download-head, version, other; "" counts all.
func (s *Server) Count(endpoint string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if endpoint != "" {
		return s.count[endpoint]
	}
	n := 0
	for _, v := range s.count {
		n += v
	}
	return n
}

// Counts gives all counters.
func (s *Server) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]int, len(s.count))
	for k, v := range s.count {
		out[k] = v
	}
	return out
}

// ResetCounts sets the counters and byte totals to zero (not the limits').
func (s *Server) ResetCounts() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count, s.sent, s.recv = map[string]int{}, 0, 0
}

// Bytes gives how many bytes of images were sent and of uploads received.
func (s *Server) Bytes() (sent, received int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, s.recv
}

// ResetLimits starts a new day and a new week.
func (s *Server) ResetLimits() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limiter{}
	for _, c := range s.state.collections {
		c.gets = 0
	}
	for _, c := range s.state.containers {
		c.gets = 0
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	endpoint, handle := s.route(r)
	s.mu.Lock()
	s.count[endpoint]++
	fault := s.fault
	s.mu.Unlock()
	var planned *Fault
	if fault != nil {
		planned = fault(endpoint, r) // may move the clock
	}
	if s.opt.NoDate {
		w.Header()["Date"] = nil
	} else { // of the injected clock, as a real server's follows its own
		w.Header().Set("Date", s.opt.Now().UTC().Format(http.TimeFormat))
	}
	if planned != nil {
		s.serveFault(w, r, planned, handle)
		return
	}
	handle(w, r)
}

// route finds the view for a request, in the order of the server's own table.
func (s *Server) route(r *http.Request) (string, http.HandlerFunc) {
	path := r.URL.Path
	if path == "/upload" || strings.HasPrefix(path, "/upload/") {
		return "upload", s.upload
	}
	if path == "/version" || path == "/version/" {
		return "version", s.api(func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusOK, map[string]any{"data": map[string]string{"version": "v1.0.0", "apiVersion": "2.0.0-alpha.1"}})
		}, true)
	}
	if m := downloadPath.FindStringSubmatch(path); m != nil {
		name := "download"
		if r.Method == http.MethodHead {
			name = "download-head"
		}
		return name, func(w http.ResponseWriter, r *http.Request) { s.download(w, r, m[1], m[2]) }
	}
	if rest, ok := strings.CutPrefix(path, "/api/"); ok {
		return s.routeAPI(rest)
	}
	return "other", notFoundHTML
}

func (s *Server) domain() string {
	if s.opt.DomainName != "" {
		return s.opt.DomainName
	}
	return s.URL
}

// html answers with a page, as Django and nginx do for everything that is
// not the API's own error.
func html(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(status)
	title := fmt.Sprintf("%d %s", status, http.StatusText(status))
	fmt.Fprintf(w, "<!doctype html>\n<html lang=\"en\">\n<head><title>%s</title></head>\n<body><h1>%s</h1><p></p></body>\n</html>\n", title, title)
}

func notFoundHTML(w http.ResponseWriter, _ *http.Request) { html(w, http.StatusNotFound) }

// serverError is what a view that raised an exception answers.
func serverError(w http.ResponseWriter) { html(w, http.StatusInternalServerError) }

var errNoUser = errors.New("no such user")
