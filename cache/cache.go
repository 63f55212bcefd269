package cache

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// Options describe one registry's use of a cache directory.
type Options struct {
	// Dir is the cache directory, made with mode 0700 if absent.
	Dir string
	// Size bounds the bytes kept, in allocated blocks; 0 means no bound.
	Size int64
	// FreeFloor is the space on the file system, in bytes, that the cache leaves free.
	FreeFloor int64
	// Registry identifies the registry across processes and time ("registry:https://…");
	// no credentials.
	Registry string
	Backend  backends.Set
	// ListTTL is the age up to which a listing counts as fresh.
	ListTTL time.Duration
	Log     *slog.Logger
	Now     func() time.Time
}

// Cache ties together what is remembered, kept and staged of one registry.
// Safe for concurrent use, and for other processes on the same Dir.
type Cache struct {
	Catalog *Catalog
	Store   *Store
	Stage   *Stage

	dir     string
	backend backends.Set
	log     *slog.Logger
}

// Open prepares the cache directory; it asks the registry nothing. The
// caller calls Close; the backend stays the caller's.
func Open(_ context.Context, o Options) (*Cache, error) {
	stage, err := NewStage(StageOptions{Dir: o.Dir, Registry: o.Registry, Log: o.Log, Now: o.Now})
	if err != nil {
		return nil, err
	}
	index, err := OpenIndex(filepath.Join(o.Dir, "index"), o.Registry, o.Log)
	if err != nil {
		return nil, errors.Join(err, stage.Close())
	}
	c := &Cache{Stage: stage, dir: o.Dir, backend: o.Backend, log: o.Log}
	c.Catalog = NewCatalog(CatalogOptions{
		Registry: o.Registry, Backend: o.Backend, TTL: o.ListTTL, Index: index, Log: o.Log, Now: o.Now,
	})
	c.Store, err = NewStore(StoreOptions{
		Dir: o.Dir, Registry: o.Registry, Backend: o.Backend, MaxBytes: o.Size, FreeFloor: o.FreeFloor,
		Learn: c.Catalog.Learn, Log: o.Log, Now: o.Now,
	})
	if err != nil {
		return nil, errors.Join(err, c.Catalog.Close(), stage.Close())
	}
	return c, nil
}

// Dir gives the cache directory.
func (c *Cache) Dir() string { return c.dir }

// CanPush reports whether the registry takes images.
func (c *Cache) CanPush() bool { return c.backend.Pusher != nil }

// Push sends a staged file to the registry as ref and, once the registry has
// acknowledged it, adopts its bytes as the cached blob without copying and
// drops it from the stage. On an error the bytes stay staged, journalled with
// the reason, and can be written again. The staged file's descriptors stay
// open until its Close, so readers of it go on.
func (c *Cache) Push(ctx context.Context, staged *Staged, ref backends.Ref, report func(sent int64)) (backends.Record, error) {
	if staged.Ref() != ref {
		if err := staged.SetRef(ref); err != nil {
			return backends.Record{}, err
		}
	}
	frozen, err := staged.Freeze(ctx)
	if err != nil {
		return backends.Record{}, err
	}
	rec, err := c.Catalog.Push(ctx, ref, frozen, report)
	if err != nil {
		if journalErr := staged.Fail(err); journalErr != nil {
			c.log.Warn("the reason of a failed push could not be written down", "image", ref.String(), "error", journalErr)
		}
		staged.Thaw()
		return backends.Record{}, err
	}
	// From here on the image is safe in the registry: what fails below costs
	// a download later, and is no failure of the push.
	c.Catalog.Learn(rec, frozen.Size(), frozen.Digest())
	if c.backend.Local == nil {
		if err := c.Store.Adopt(rec, staged.Path(), frozen.Digest()); err != nil {
			c.log.Warn("a pushed image is not kept in the cache", "image", rec.Ref.String(), "error", err)
		}
	}
	if err := staged.Drop(); err != nil {
		c.log.Warn("a pushed file is left in the stage", "image", rec.Ref.String(), "error", err)
	}
	return rec, nil
}

// Close ends fetches, keeps what they brought, and releases every
// descriptor. It waits no longer than ctx for requests under way.
func (c *Cache) Close(ctx context.Context) error {
	return errors.Join(c.Store.Close(ctx), c.Catalog.Close(), c.Stage.Close())
}
