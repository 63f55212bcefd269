package transport

import (
	"sync"
	"time"
)

// Budget bounds how many requests each host gets: so many at once, refilled
// evenly over a period. It may be shared by several Clients and is safe for
// concurrent use. A nil Budget allows everything.
type Budget struct {
	requests float64
	per      time.Duration
	now      func() time.Time

	mu    sync.Mutex // guards hosts
	hosts map[string]*account
}

type account struct {
	left    float64   // requests that may be sent at once
	counted time.Time // when left was right
	blocked time.Time // no request before
}

// NewBudget allows requests per period to each host, all of them at once if
// need be. requests and per must be positive.
func NewBudget(requests int, per time.Duration, now func() time.Time) *Budget {
	return &Budget{requests: float64(requests), per: per, now: now, hosts: map[string]*account{}}
}

// account is called with mu held.
func (b *Budget) account(host string, now time.Time) *account {
	a := b.hosts[host]
	if a == nil {
		a = &account{left: b.requests, counted: now}
		b.hosts[host] = a
	}
	if passed := now.Sub(a.counted); passed > 0 {
		a.left = min(b.requests, a.left+b.requests*float64(passed)/float64(b.per))
		a.counted = now
	}
	return a
}

// take spends one request to host, or tells how long to wait before asking
// again.
func (b *Budget) take(host string) (wait time.Duration, ok bool) {
	if b == nil {
		return 0, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	a := b.account(host, now)
	if now.Before(a.blocked) {
		return a.blocked.Sub(now), false
	}
	if a.left < 1 {
		return time.Duration((1-a.left)*float64(b.per)/b.requests) + time.Millisecond, false
	}
	a.left--
	return 0, true
}

// block lets no request to host through for d: the registry said so.
func (b *Budget) block(host string, d time.Duration) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	a := b.account(host, now)
	if until := now.Add(d); until.After(a.blocked) {
		a.blocked = until
	}
}
