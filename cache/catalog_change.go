package cache

import (
	"context"
	"errors"

	"github.com/sregistry/sregistry-fs/backends"
)

// Push stores src in the registry as ref and returns once the registry has
// acknowledged it; from then on the catalog shows it, under ref too if the
// registry spells it otherwise. ReadOnly where nothing can be pushed; Frozen
// before any byte is sent where that is known. ctx bounds the push.
func (c *Catalog) Push(ctx context.Context, ref backends.Ref, src backends.Source, report func(sent int64)) (backends.Record, error) {
	if err := checkImage(ref); err != nil {
		return backends.Record{}, err
	}
	if err := c.writable("push", ref); err != nil {
		return backends.Record{}, err
	}
	if err := c.refuseFrozen(ctx, "push", ref); err != nil {
		return backends.Record{}, err
	}
	rec, err := c.opt.Backend.Pusher.Push(ctx, ref, src, report)
	if err != nil {
		c.doubt(ref)
		return backends.Record{}, err
	}
	rec = normal(rec)
	rec.Full = true
	if rec.Check() != nil || rec.IsCollection() {
		rec.Ref = ref
	}
	c.changed(func() {
		c.alias(ref, rec.Ref)
		delete(c.absent, ref)
		c.learnOwn(rec, false)
	})
	return rec, nil
}

// Delete removes an image from the registry. It returns nil once the
// registry no longer has rec's ref. If ctx ends before, the request goes on
// for up to a minute, its outcome is learned, and logged if it failed.
func (c *Catalog) Delete(ctx context.Context, rec backends.Record) error {
	if err := c.writable("delete", rec.Ref); err != nil {
		return err
	}
	if c.opt.Backend.Deleter == nil {
		return &backends.Error{Op: "delete", Ref: rec.Ref, Kind: backends.Unsupported}
	}
	if err := c.refuseFrozen(ctx, "delete", rec.Ref); err != nil {
		return err
	}
	_, err := c.detach(ctx, "delete", rec.Ref, func(ctx context.Context) (backends.Record, error) {
		err := c.opt.Backend.Deleter.Delete(ctx, rec)
		if err != nil && !errors.Is(err, backends.NotFound) { // deleted before, perhaps by a try whose answer was lost
			c.doubt(rec.Ref)
			return backends.Record{}, err
		}
		st := c.collection(rec.Collection)
		c.changed(func() {
			c.learnOwn(backends.Record{Ref: rec.Ref}, true)
			c.noteAbsent(rec.Ref)
			c.keepEmpty(st)
		})
		return backends.Record{}, nil
	})
	return err
}

// keepEmpty lets a collection stay when its last image went by our own
// doing, as a directory does. The caller holds mu.
func (c *Catalog) keepEmpty(st *collection) {
	if !c.inTop(st.name) && len(c.merged(st)) == 0 {
		c.setMark(st.name, markMade)
	}
}

// Move renames an image within the registry, replacing to. Unsupported where
// the registry cannot. When ctx ends before, it goes on as Delete does.
func (c *Catalog) Move(ctx context.Context, rec backends.Record, to backends.Ref) (backends.Record, error) {
	if err := checkImage(to); err != nil {
		return backends.Record{}, err
	}
	if err := c.writable("move", rec.Ref); err != nil {
		return backends.Record{}, err
	}
	if c.opt.Backend.Mover == nil {
		return backends.Record{}, &backends.Error{Op: "move", Ref: rec.Ref, Kind: backends.Unsupported}
	}
	for _, ref := range []backends.Ref{rec.Ref, to} {
		if err := c.refuseFrozen(ctx, "move", ref); err != nil {
			return backends.Record{}, err
		}
	}
	return c.detach(ctx, "move", rec.Ref, func(ctx context.Context) (backends.Record, error) {
		moved, err := c.opt.Backend.Mover.Move(ctx, rec, to)
		if err != nil {
			c.doubt(rec.Ref)
			c.doubt(to)
			return backends.Record{}, err
		}
		moved = normal(moved)
		moved.Full = true
		if moved.Check() != nil || moved.IsCollection() {
			moved.Ref = to
		}
		st := c.collection(rec.Collection)
		c.changed(func() {
			if moved.Ref != rec.Ref {
				c.learnOwn(backends.Record{Ref: rec.Ref}, true)
				c.noteAbsent(rec.Ref)
			}
			c.alias(to, moved.Ref)
			delete(c.absent, to)
			c.learnOwn(moved, false)
			c.keepEmpty(st)
		})
		return moved, nil
	})
}

// MakeCollection makes a collection that exists only here until its first
// image, across restarts. Exists if it is known already.
func (c *Catalog) MakeCollection(ctx context.Context, name string) error {
	ref := backends.Ref{Collection: name}
	if err := backends.CheckCollection(name); err != nil {
		return err
	}
	if err := c.writable("mkdir", ref); err != nil {
		return err
	}
	has, err := c.HasCollection(ctx, name)
	if err != nil {
		return err
	}
	if has {
		return &backends.Error{Op: "mkdir", Ref: ref, Kind: backends.Exists}
	}
	c.changed(func() {
		delete(c.absent, ref)
		c.setMark(name, markMade)
	})
	return nil
}

// RemoveCollection forgets a collection that holds neither images nor
// collections: one made here for good, one that the registry shows until it
// is listed again. ErrNotEmpty if it holds any, NotFound if there is none.
func (c *Catalog) RemoveCollection(ctx context.Context, name string) error {
	ref := backends.Ref{Collection: name}
	if err := c.writable("rmdir", ref); err != nil {
		return err
	}
	recs, err := c.Images(ctx, name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	parent := c.isParent(name)
	c.mu.Unlock()
	if len(recs) > 0 || parent {
		return &backends.Error{Op: "rmdir", Ref: ref, Kind: backends.Exists, Err: ErrNotEmpty}
	}
	c.changed(func() {
		st := c.collections[name]
		if c.inTop(name) || c.marks[name].kind == markFound || st != nil && !st.at.IsZero() {
			c.setMark(name, markRemoved)
		} else {
			c.setMark(name, 0)
		}
	})
	return nil
}

// setMark notes what kind of collection name is; 0 ends the mark. The caller
// holds mu.
func (c *Catalog) setMark(name string, kind markKind) {
	if kind == 0 {
		delete(c.marks, name)
		c.index.del(bucketMark, name)
		return
	}
	m := mark{kind: kind, at: c.now()}
	c.marks[name] = m
	e := newEncoder()
	e.uint(uint64(kind))
	c.index.put(bucketMark, name, m.at, e.b)
}

// changed makes changes under mu and puts them on disk: what this mount did
// is not to be forgotten by a kill.
func (c *Catalog) changed(do func()) {
	c.mu.Lock()
	do()
	c.mu.Unlock()
	c.index.Flush()
}

// doubt forgets what a Stat told of ref: a change of it failed, perhaps
// after the registry had done it.
func (c *Catalog) doubt(ref backends.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.overlays[ref.Collection][keyOf(ref)]; o != nil && o.listed && !o.own {
		c.setOverlay(ref, nil)
	}
	delete(c.absent, ref)
}

func (c *Catalog) writable(op string, ref backends.Ref) error {
	if c.opt.Backend.Pusher == nil {
		return &backends.Error{Op: op, Ref: ref, Kind: backends.ReadOnly, Hint: "this registry can only be read"}
	}
	return nil
}

// refuseFrozen is Frozen if ref is an image that the registry protects.
func (c *Catalog) refuseFrozen(ctx context.Context, op string, ref backends.Ref) error {
	rec, ok := c.lookup(ref) // what is known without a listing
	if ok && !rec.Full && !rec.Frozen {
		if full, err := c.Full(ctx, rec); err == nil {
			rec = full
		}
	}
	if ok && rec.Frozen {
		return &backends.Error{Op: op, Ref: ref, Kind: backends.Frozen, Hint: "unfreeze it in the registry first"}
	}
	return nil
}

// detach runs a change that outlives its caller, so that its outcome is
// learned in any case.
func (c *Catalog) detach(ctx context.Context, op string, ref backends.Ref, do func(context.Context) (backends.Record, error)) (backends.Record, error) {
	f := &flight{done: make(chan struct{})}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return backends.Record{}, errCatalogClosed
	}
	c.work.Go(func() {
		bounded, cancel := context.WithTimeout(c.ctx, statBound)
		defer cancel()
		f.rec, f.err = do(bounded)
		close(f.done)
		if f.err != nil && ctx.Err() != nil {
			c.opt.Log.Warn("a change failed after its caller had left", "op", op, "image", ref.String(), "error", f.err)
		}
	})
	c.mu.Unlock()
	return f.wait(ctx)
}
