package registry

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
	"github.com/sregistry/sregistry-fs/secrets"
)

// The settings, named as the Python client and the registry's token page do.
func options() (base, username, token, noHTTPS backends.Option) {
	return backends.Option{Name: "base", Env: "SREGISTRY_REGISTRY_BASE", Usage: "address of the registry, if the mount names none"},
		backends.Option{Name: "username", Env: "SREGISTRY_REGISTRY_USERNAME", Usage: "login name; needed with the token to push, delete and read private images"},
		backends.Option{Name: "token", Env: "SREGISTRY_REGISTRY_TOKEN", Usage: "token from the registry's token page; also lifts the limit of 100 requests a day", Secret: true},
		backends.Option{Name: "nohttps", Env: "SREGISTRY_REGISTRY_NOHTTPS", Usage: "use http:// for an address without a scheme, if set to anything"}
}

// Driver is the entry for Singularity Registry Server.
func Driver() backends.Driver {
	base, username, token, noHTTPS := options()
	return backends.Driver{
		Scheme:   "registry",
		Summary:  "Singularity Registry Server (self-hosted)",
		Location: "https://HOST",
		Options:  []backends.Option{base, username, token, noHTTPS},
		Dial: func(_ context.Context, c backends.Config) (backends.Backend, error) {
			return dial(c)
		},
	}
}

// dial makes no request: the registry counts them.
func dial(c backends.Config) (*registry, error) {
	optBase, optUser, optToken, optNoHTTPS := options()
	scheme := "https"
	if c.Setting(optNoHTTPS) != "" {
		scheme = "http"
	}
	configured := c.Setting(optBase, "base")
	location := c.Location
	if location == "" {
		location = configured
	}
	if location == "" {
		return nil, &backends.Error{
			Op: "configure", Kind: backends.Invalid, Err: errors.New("no registry is named"),
			Hint: "mount registry:https://HOST, or set " + optBase.Env,
		}
	}
	root, err := parseRoot(location, scheme)
	if err != nil {
		return nil, err
	}
	cred := credentials{user: c.Setting(optUser, "username")}
	cred.token, _ = c.Settings.Secret(optToken.Env, "token")
	if strings.TrimSpace(cred.token.Reveal()) == "" {
		cred.token = secrets.Secret{}
	}
	if c.Location != "" && configured != "" {
		home, err := parseRoot(configured, scheme)
		if err != nil || home.Hostname() != root.Hostname() || home.Port() != root.Port() {
			if !cred.token.IsZero() {
				c.Log.Warn("the token in the settings belongs to another registry and is not used", "registry", root.Host, "setting", optBase.Env)
			}
			cred = credentials{}
		}
	}
	b := &registry{
		root: root, cred: cred, log: c.Log, now: c.Now, sleep: sleep,
		// A token shows itself to everyone on the way; a signature does not.
		showToken: !cred.token.IsZero() && (root.Scheme == "https" || loopback(root.Hostname())),
		secrets:   map[string]string{}, private: map[string]bool{}, shut: map[string]time.Time{},
	}
	b.client, err = transport.New(c, transport.Options{Base: root, Classify: b.classify})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// parseRoot reads an address as people write it: with or without scheme,
// slash and /api at the end.
func parseRoot(s, scheme string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = scheme + "://" + strings.TrimPrefix(s, "//")
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, &backends.Error{
			Op: "configure", Kind: backends.Invalid, // the address may hold a password: it is not shown
			Err: errors.New("the registry's address is not of the form https://HOST"), Hint: "write it without user name and query",
		}
	}
	path := strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/api")
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(path, "/")}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// sleep waits for d, or until ctx ends and then gives its cause.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
