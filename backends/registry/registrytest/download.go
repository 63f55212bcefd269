package registrytest

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// FaultKind is a way to fail.
type FaultKind int

// The faults. Those of bodies hit after At bytes of the body.
const (
	Short   FaultKind = iota // the stated length, then the connection ends
	Reset                    // no answer at all
	Stall                    // nothing more comes until the client leaves
	Page                     // 200 with an HTML page, as a captive portal answers
	Endless                  // no length, and bytes without end
	Longer                   // a body longer and a length greater by 7 than the image
	Fewer                    // a body and a length 7 less than the image
	Status                   // the status Code with an HTML page
	Flip                     // one byte changed
	Drop                     // the request is carried out, its answer is lost
)

// Fault is one planned failure.
type Fault struct {
	Kind FaultKind
	At   int64
	Code int
}

// SetFault plans failures: f is asked for every request and gives nil for
// those to leave alone. nil plans none.
func (s *Server) SetFault(f func(endpoint string, r *http.Request) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// SetDownloadRate bounds each download from now on, in bytes a second; 0 means unbounded.
func (s *Server) SetDownloadRate(rate int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate = rate
}

func (s *Server) serveFault(w http.ResponseWriter, r *http.Request, f *Fault, handle http.HandlerFunc) {
	switch f.Kind {
	case Reset:
		panic(http.ErrAbortHandler)
	case Page:
		html(w, http.StatusOK)
	case Status:
		html(w, f.Code)
	case Drop:
		handle(discard{h: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	default:
		handle(&broken{ResponseWriter: w, s: s, r: r, f: f}, r)
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// broken writes a body with a fault in it.
type broken struct {
	http.ResponseWriter
	s      *Server
	r      *http.Request
	f      *Fault
	at     int64
	header bool
}

func (b *broken) WriteHeader(status int) {
	if b.header {
		return
	}
	b.header = true
	h := b.Header()
	if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
		switch b.f.Kind {
		case Longer:
			h.Set("Content-Length", strconv.FormatInt(n+7, 10))
		case Fewer:
			h.Set("Content-Length", strconv.FormatInt(n-7, 10))
		case Endless:
			h.Del("Content-Length")
		}
	}
	b.ResponseWriter.WriteHeader(status)
}

func (b *broken) Write(p []byte) (int, error) {
	b.WriteHeader(http.StatusOK)
	n := len(p)
	hits := b.at+int64(n) > b.f.At
	off := max(0, b.f.At-b.at)
	b.at += int64(n)
	switch b.f.Kind {
	case Flip:
		if hits && off < int64(n) && b.at-int64(n) <= b.f.At {
			p = append([]byte{}, p...)
			p[off] ^= 0xff
		}
	case Short, Stall:
		if hits {
			_, _ = b.ResponseWriter.Write(p[:min(off, int64(n))]) // the connection ends anyway
			b.flush()
			if b.f.Kind == Stall {
				select {
				case <-b.r.Context().Done():
				case <-b.s.done:
				}
			}
			panic(http.ErrAbortHandler)
		}
	case Endless:
		for {
			if _, err := b.ResponseWriter.Write(p); err != nil {
				return 0, err
			}
		}
	}
	if _, err := b.ResponseWriter.Write(p); err != nil && b.f.Kind != Fewer {
		return 0, err
	}
	return n, nil
}

func (b *broken) flush() {
	if f, ok := b.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// end appends what Longer promised.
func (b *broken) end() {
	if b.f.Kind == Longer {
		_, _ = b.ResponseWriter.Write([]byte("surplus")) // a client that left needs none
	}
}

// download sends an image, or its headers: both cost one of the weekly
// downloads. A Range header is not looked at.
func (s *Server) download(w http.ResponseWriter, r *http.Request, idText, secret string) {
	if s.viewLimited(w, r, "download") {
		return
	}
	id, err := strconv.Atoi(idText)
	s.mu.Lock()
	k := s.byID(id)
	if err != nil || k == nil || k.collection.secret != secret || k.file == "" {
		s.mu.Unlock()
		notFoundHTML(w, r)
		return
	}
	f, err := os.Open(k.file)
	if err != nil { // the lost file of a re-push
		s.mu.Unlock()
		serverError(w)
		return
	}
	defer f.Close()
	if over(k.gets, s.opt.ContainerWeekly) {
		s.mu.Unlock()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusForbidden)
		return
	}
	k.gets++
	k.collection.gets++
	k.saved = s.opt.Now()
	k.collection.changed = k.saved
	name := strings.ReplaceAll(k.uri(), "/", "-") + ".sif"
	rate := s.rate
	s.mu.Unlock()

	st, err := f.Stat()
	if err != nil {
		serverError(w)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/img")
	h.Set("Content-Length", strconv.FormatInt(st.Size(), 10))
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", name))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	s.send(w, r, f, rate)
	if b, ok := w.(*broken); ok {
		b.end()
	}
}

func (s *Server) send(w http.ResponseWriter, r *http.Request, f io.Reader, rate int64) {
	size := int64(256 << 10)
	if rate > 0 {
		size = max(1, min(size, rate/10))
	}
	buf := make([]byte, size)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			s.mu.Lock()
			s.sent += int64(n)
			s.mu.Unlock()
			if rate > 0 {
				if fl, ok := w.(http.Flusher); ok {
					fl.Flush()
				}
				select {
				case <-time.After(time.Duration(int64(n)) * time.Second / time.Duration(rate)):
				case <-r.Context().Done():
					return
				case <-s.done:
					return
				}
			}
		}
		if err != nil {
			return
		}
	}
}
