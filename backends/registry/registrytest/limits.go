package registrytest

import (
	"fmt"
	"net"
	"net/http"
	"time"
)

// limiter counts requests a day. The views' limit has a window that starts
// with its first request; the API's throttle slides.
type limiter struct {
	views map[string]*window // by address and view
	anon  map[string][]time.Time
}

type window struct {
	start time.Time
	n     int
}

const day = 24 * time.Hour

func address(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// viewLimited counts a request against a view and answers it with 403 and a
// page if that is one too many.
func (s *Server) viewLimited(w http.ResponseWriter, r *http.Request, view string) bool {
	if s.opt.ViewLimit == NoLimit {
		return false
	}
	s.mu.Lock()
	now, key := s.opt.Now(), address(r)+" "+view
	if s.limit.views == nil {
		s.limit.views = map[string]*window{}
	}
	v := s.limit.views[key]
	if v == nil || now.Sub(v.start) >= day {
		v = &window{start: now}
		s.limit.views[key] = v
	}
	v.n++
	over := v.n > s.opt.ViewLimit
	s.mu.Unlock()
	if over {
		html(w, http.StatusForbidden)
	}
	return over
}

// throttled counts a request without a Token against its address and answers
// it with 429 if that is one too many.
func (s *Server) throttled(w http.ResponseWriter, r *http.Request) bool {
	if s.opt.AnonLimit == NoLimit {
		return false
	}
	s.mu.Lock()
	now, key := s.opt.Now(), address(r)
	if s.limit.anon == nil {
		s.limit.anon = map[string][]time.Time{}
	}
	times := s.limit.anon[key]
	for len(times) > 0 && now.Sub(times[0]) >= day {
		times = times[1:]
	}
	var wait int
	over := len(times) >= s.opt.AnonLimit
	if over { // a refused request is not counted
		wait = int(day.Seconds())
		if len(times) > 0 {
			wait = int((day - now.Sub(times[0])).Seconds())
		}
	} else {
		times = append(times, now)
	}
	s.limit.anon[key] = times
	s.mu.Unlock()
	if over {
		w.Header().Set("Retry-After", fmt.Sprint(wait))
		detail(w, http.StatusTooManyRequests, fmt.Sprintf("Request was throttled. Expected available in %d seconds.", wait))
	}
	return over
}
