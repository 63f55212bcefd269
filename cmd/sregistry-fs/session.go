package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/cache"
	"github.com/sregistry/sregistry-fs/secrets"
)

// version is what `version` prints and registries see; a release build sets
// it with -ldflags -X.
var version = "devel"

// closeGrace bounds how long a command waits for its cache to close.
const closeGrace = 10 * time.Second

// session is a registry together with its cache, for one command.
type session struct {
	spec     spec
	identity string // of the registry, across processes and time
	set      backends.Set
	cache    *cache.Cache
	since    time.Time
	log      *slog.Logger
}

// open dials the registry and opens the cache. The caller closes it.
func (a *app) open(ctx context.Context, s spec, settings *secrets.Source, log *slog.Logger) (*session, error) {
	if err := a.cfg.check(); err != nil {
		return nil, err
	}
	if err := s.options(a.cfg.Options); err != nil {
		return nil, err
	}
	dir, err := a.cacheDir(log)
	if err != nil {
		return nil, err
	}
	config := backends.Config{
		Location: s.location, Options: a.cfg.Options, Settings: settings.Section(s.driver.Scheme),
		UserAgent: "sregistry-fs/" + version, Log: log.With("backend", s.driver.Scheme), Now: a.now,
	}
	backend, err := s.driver.Dial(ctx, config)
	if err != nil {
		return nil, err
	}
	set, identity := backends.Probe(backend), s.identity(config)
	c, err := cache.Open(ctx, cache.Options{
		Dir: dir, Size: a.cfg.CacheSize, FreeFloor: freeFloor, Registry: identity, Backend: set,
		ListTTL: a.cfg.ListTTL, Log: log, Now: a.now,
	})
	if err != nil {
		return nil, errors.Join(err, backend.Close())
	}
	return &session{spec: s, identity: identity, set: set, cache: c, since: a.now(), log: log}, nil
}

// close releases everything within closeGrace, even when ctx has ended.
func (s *session) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeGrace)
	defer cancel()
	return errors.Join(s.cache.Close(ctx), s.set.Close())
}

// identity names a registry across processes and time: the spec and every
// setting that differs from its default and is no credential. Two users of
// one registry see different listings, so their names belong to it.
func (s spec) identity(c backends.Config) string {
	id := s.driver.Scheme + ":" + strings.TrimRight(s.location, "/")
	if u, err := url.Parse(s.location); err == nil && u.User != nil {
		u.User = url.User(u.User.Username())
		id = s.driver.Scheme + ":" + strings.TrimRight(u.String(), "/")
	}
	var set []string
	for _, o := range s.driver.Options {
		if v := c.Setting(o); !o.Secret && v != o.Default {
			set = append(set, o.Name+"="+v)
		}
	}
	slices.Sort(set)
	return strings.Join(append([]string{id}, set...), " ")
}

// find gives the full record of an image, exactly of version if that is set.
func (s *session) find(ctx context.Context, ref backends.Ref, version string) (backends.Record, error) {
	if version != "" {
		rec, err := s.cache.Catalog.FindVersion(ctx, ref, version)
		if err != nil {
			return rec, err
		}
		return s.cache.Catalog.Full(ctx, rec)
	}
	rec, err := s.cache.Catalog.Find(ctx, ref)
	if err != nil {
		return rec, err
	}
	return s.cache.Catalog.Full(ctx, rec)
}

// withSession runs f on the registry that text names. When text is a path
// under a mount it runs onPath instead, if there is one.
func (a *app) withSession(ctx context.Context, text string, onPath func(path string) error, f func(*session, subject) error) (err error) {
	log := a.logger(a.stderr, slog.LevelWarn)
	settings, err := a.settings(log)
	if err != nil {
		return err
	}
	subj, err := a.subject(text, settings)
	if err != nil {
		return err
	}
	if subj.path != "" {
		return onPath(subj.path)
	}
	s, err := a.open(ctx, subj.spec, settings, log)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := s.close(ctx); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("close the cache: %w", closeErr))
		}
	}()
	return f(s, subj)
}
