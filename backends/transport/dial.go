package transport

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
)

// reach says how close to this machine an address is. A registry may refer
// to places as far out as itself or farther, never to closer ones.
type reach int

const (
	public   reach = iota
	private        // RFC 1918, unique local, carrier-grade NAT
	loopback       // this machine
	never          // link-local (where clouds keep credentials), multicast, unspecified
)

func reachOf(ip netip.Addr) reach {
	ip = ip.Unmap()
	switch {
	case !ip.IsValid(), ip.IsUnspecified(), ip.IsMulticast(), ip.IsLinkLocalUnicast(), ip.Is4() && ip.As4()[0] == 0:
		return never
	case ip.IsLoopback():
		return loopback
	case ip.IsPrivate(), sharedNet(ip):
		return private
	}
	return public
}

// sharedNet is carrier-grade NAT (RFC 6598), which clouds and overlay
// networks use like a private range.
func sharedNet(ip netip.Addr) bool {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10).Contains(ip)
}

// forbiddenAddress is why a connection was not tried.
type forbiddenAddress struct{ what string }

func (f *forbiddenAddress) Error() string {
	return "the registry refers to " + f.what + ", which it may not"
}

// guard decides which addresses may be connected to. It looks at the address
// after the name was resolved, so a name cannot change its mind in between.
type guard struct {
	home string // the registry's host:port

	mu      sync.Mutex // guards the fields below; never held across a dial
	closest reach      // the closest address the registry itself was seen at
	proxy   map[string]bool
}

func newGuard(base *url.URL) *guard {
	g := &guard{home: net.JoinHostPort(strings.ToLower(base.Hostname()), port(base)), proxy: map[string]bool{}}
	if ip, err := netip.ParseAddr(base.Hostname()); err == nil {
		g.closest = reachOf(ip)
	}
	return g
}

// proxies notes the proxies that the environment names: a connection to one
// is the user's own choice. Its error never shows the setting, which may hold
// a password.
func (g *guard) proxies(choose func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	return func(r *http.Request) (*url.URL, error) {
		u, err := choose(r)
		if err != nil {
			return nil, errors.New("the http_proxy or https_proxy setting is not a URL")
		}
		if u == nil {
			return nil, nil //nolint:nilnil // http.Transport's own convention for no proxy
		}
		p := u.Port()
		switch {
		case p != "":
		case u.Scheme == "https":
			p = "443"
		case strings.HasPrefix(u.Scheme, "socks5"):
			p = "1080"
		default:
			p = "80"
		}
		g.mu.Lock()
		g.proxy[net.JoinHostPort(strings.ToLower(u.Hostname()), p)] = true
		g.mu.Unlock()
		return u, nil
	}
}

// dial connects to addr (host:port) if its resolved address is allowed.
func (g *guard) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	to := strings.ToLower(addr)
	g.mu.Lock()
	trusted := g.proxy[to]
	g.mu.Unlock()
	if !trusted {
		if to != g.home {
			if err := g.locate(ctx); err != nil {
				return nil, err
			}
		}
		d.Control = func(_, resolved string, _ syscall.RawConn) error { return g.allow(to, resolved) }
	}
	return d.DialContext(ctx, network, addr)
}

// locate finds out where the registry is, if no connection to it has yet.
func (g *guard) locate(ctx context.Context) error {
	g.mu.Lock()
	known := g.closest != public
	g.mu.Unlock()
	if known {
		return nil
	}
	host, _, err := net.SplitHostPort(g.home)
	if err != nil {
		return err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil //nolint:nilerr // not found means nothing is known, so only public addresses are allowed
	}
	for _, ip := range ips {
		g.seen(reachOf(ip))
	}
	return nil
}

func (g *guard) seen(r reach) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r != never {
		g.closest = max(g.closest, r)
	}
}

// allow is the decision on one resolved address.
func (g *guard) allow(to, resolved string) error {
	ap, err := netip.ParseAddrPort(resolved)
	if err != nil {
		return &forbiddenAddress{"an address of an unknown kind"}
	}
	r := reachOf(ap.Addr())
	if r == never {
		return &forbiddenAddress{"a link-local or reserved address"}
	}
	if to == g.home {
		g.seen(r)
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if r > g.closest {
		return &forbiddenAddress{"an address inside this network"}
	}
	return nil
}
