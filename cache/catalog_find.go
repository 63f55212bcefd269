package cache

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// statBound is the longest that one Stat, Delete or Move may take.
const statBound = time.Minute

// Find gives what is known of an image: from the listing, from an earlier Stat
// or push, or, for a name that none of them shows, from a Stat: one an hour
// per name, and as long as they find nothing ten an hour in all. ref may be a
// spelling that was used before; the record carries the registry's own. The
// record need not be full. NotFound if there is no such image.
func (c *Catalog) Find(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	if checkImage(ref) != nil {
		return backends.Record{}, notFound("find", ref)
	}
	if rec, ok := c.remembered(ref); ok {
		return rec, nil
	}
	err := c.ensureImages(ctx, ref.Collection, lookupPatience)
	if ctx.Err() != nil {
		return backends.Record{}, ctx.Err()
	}
	if rec, ok := c.lookup(ref); ok {
		return rec, nil
	}
	if noAnswer(err) {
		return backends.Record{}, err
	}
	// Where nothing can be listed, names are the only way, and cost no budget.
	return c.ask(ctx, "find", ref, err == nil || errors.Is(err, backends.NotFound))
}

// noAnswer reports whether err is the registry's silence, not its answer.
func noAnswer(err error) bool {
	switch backends.KindOf(err) {
	case backends.Unavailable, backends.Timeout, backends.Throttled:
		return true
	}
	return false
}

// remembered gives an image that no listing needs to be asked for: its
// collection's listing is fresh, or the image was learned within TTL.
func (c *Catalog) remembered(ref backends.Ref) (backends.Record, bool) {
	c.mu.Lock()
	ref = c.actual(ref)
	c.mu.Unlock()
	st := c.collection(ref.Collection)
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.overlays[ref.Collection][keyOf(ref)]
	if c.fresh(st.at) || o != nil && c.fresh(o.at) {
		return c.current(st, keyOf(ref))
	}
	return backends.Record{}, false
}

// Known gives what is known of an image, however old, without asking.
func (c *Catalog) Known(ref backends.Ref) (backends.Record, bool) { return c.lookup(ref) }

// lookup gives what is known of an image, however old, without asking.
func (c *Catalog) lookup(ref backends.Ref) (backends.Record, bool) {
	c.mu.Lock()
	actual := c.actual(ref)
	c.mu.Unlock()
	st := c.collection(actual.Collection)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current(st, keyOf(actual))
}

// actual gives the registry's spelling of a ref that was used before. The
// caller holds mu.
func (c *Catalog) actual(ref backends.Ref) backends.Ref {
	if a, ok := c.aliases[ref]; ok {
		return a
	}
	return ref
}

// alias remembers that the registry spells used as actual. The caller holds mu.
func (c *Catalog) alias(used, actual backends.Ref) {
	if used == actual {
		if _, ok := c.aliases[used]; ok {
			delete(c.aliases, used)
			c.index.del(bucketAlias, refKey(used))
		}
		return
	}
	if c.aliases[used] == actual || len(c.aliases) >= aliasMax {
		return
	}
	c.aliases[used] = actual
	e := newEncoder()
	e.ref(actual)
	c.index.put(bucketAlias, refKey(used), c.now(), e.b)
}

// FindVersion is Find for exactly one version, given as the record's
// Version, its Word or its Digest. NotFound if the ref is not that version now.
func (c *Catalog) FindVersion(ctx context.Context, ref backends.Ref, version string) (backends.Record, error) {
	rec, err := c.Find(ctx, ref)
	if err != nil {
		return rec, err
	}
	if !rec.Matches(version) && !rec.Full {
		if rec, err = c.Full(ctx, rec); err != nil {
			return backends.Record{}, err
		}
	}
	if !rec.Matches(version) {
		return backends.Record{}, backends.Errorf("find", ref, backends.NotFound, "it is not version %q", cut(version, 200))
	}
	return rec, nil
}

// HasCollection reports whether there is such a collection: listed,
// remembered, made here, or the parent of one. For a name that is none of these
// it costs at most one Stat, within the bounds of Find.
func (c *Catalog) HasCollection(ctx context.Context, name string) (bool, error) {
	if backends.CheckCollection(name) != nil {
		return false, nil
	}
	c.mu.Lock()
	m := c.marks[name]
	here := c.remembers(name) || m.kind == markMade || m.kind == markFound && c.fresh(m.at)
	c.mu.Unlock()
	if here {
		return true, nil
	}
	if err := c.ensure(ctx, &c.top.listing, c.fetchTop, lookupPatience); err != nil {
		return false, err
	}
	c.mu.Lock()
	st := c.collections[name]
	if st == nil {
		st = &collection{name: name}
	}
	known := c.exists(st)
	m = c.marks[name]
	c.mu.Unlock()
	switch {
	case known && m.kind != markFound:
		return true, nil
	case m.kind == markRemoved:
		return false, nil
	}
	_, err := c.ask(ctx, "find", backends.Ref{Collection: name}, !known)
	switch {
	case errors.Is(err, backends.NotFound):
		return false, nil
	case known && noAnswer(err):
		return true, nil
	}
	return err == nil, err
}

// ask asks for a name that no listing shows, unless that was in vain lately
// or, with budget, too many such names were asked for.
func (c *Catalog) ask(ctx context.Context, op string, ref backends.Ref, budget bool) (backends.Record, error) {
	c.mu.Lock()
	f := c.flights[statKey(ref)]
	if f == nil {
		err := c.refusedStat(ref)
		if err == nil {
			err = c.mayAsk(op, ref, budget)
		}
		if err != nil {
			c.mu.Unlock()
			return backends.Record{}, err
		}
		f = c.flyStat(ref, budget)
	}
	c.mu.Unlock()
	return f.wait(ctx)
}

// refusedStat gives the error to serve instead of asking for one record. The
// caller holds mu.
func (c *Catalog) refusedStat(ref backends.Ref) error {
	now := c.now()
	for _, st := range []*collection{c.collections[ref.Collection], {listing: c.top.listing}} {
		if st != nil {
			if err := c.refused(&st.listing, now); noAnswer(err) {
				return err
			}
		}
	}
	return nil
}

// mayAsk is NotFound if ref was asked for in vain within the hour, or with
// budget if that is used up; otherwise it takes one from the budget, which
// finding something gives back. The caller holds mu.
func (c *Catalog) mayAsk(op string, ref backends.Ref, budget bool) error {
	now := c.now()
	if at, ok := c.absent[ref]; ok && now.Sub(at) < absentLife {
		return notFound(op, ref)
	}
	if !budget {
		return nil
	}
	c.asked = slices.DeleteFunc(c.asked, func(at time.Time) bool { return now.Sub(at) >= absentLife })
	if len(c.asked) >= absentBudget {
		return &backends.Error{
			Op: op, Ref: ref, Kind: backends.NotFound, Err: errors.New("no listing shows it, and too many such names were asked for"),
			Hint: "sregistry-fs refresh asks again now",
		}
	}
	c.asked = append(c.asked, now)
	return nil
}

// noteAbsent remembers that the registry has no such name. The caller holds mu.
func (c *Catalog) noteAbsent(ref backends.Ref) {
	now := c.now()
	if len(c.absent) >= absentMax {
		for other, at := range c.absent {
			if now.Sub(at) >= absentLife {
				delete(c.absent, other)
			}
		}
		if len(c.absent) >= absentMax {
			clear(c.absent)
		}
	}
	c.absent[ref] = now
}

func statKey(ref backends.Ref) string { return "stat\x00" + refKey(ref) }

// flyStat starts or joins the one Stat of ref; with budget it gives back
// what mayAsk took if it finds something. The caller holds mu.
func (c *Catalog) flyStat(ref backends.Ref, budget bool) *flight {
	return c.fly(statKey(ref), func(ctx context.Context) (backends.Record, error) {
		rec, err := c.stat(ctx, ref)
		if err == nil && budget {
			c.mu.Lock()
			c.giveBack()
			c.mu.Unlock()
		}
		return rec, err
	})
}

// giveBack returns one to the budget for absent names. The caller holds mu.
func (c *Catalog) giveBack() {
	if len(c.asked) > 0 {
		c.asked = c.asked[:len(c.asked)-1]
	}
}

// stat asks for one record and learns from the answer.
func (c *Catalog) stat(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	asked := c.now()
	bounded, cancel := context.WithTimeout(ctx, statBound)
	defer cancel()
	rec, err := c.opt.Backend.Stat(bounded, ref)
	if ctx.Err() != nil {
		return backends.Record{}, errCatalogClosed
	}
	if err == nil {
		rec = normal(rec)
		rec.Full = true
		if rec.Check() != nil || rec.IsCollection() != ref.IsCollection() || !ref.IsCollection() && rec.Version == "" {
			err = backends.Errorf("stat", ref, backends.Corrupt, "the answer is no record of it")
		}
	}
	missing := errors.Is(err, backends.NotFound)
	if err != nil && !missing {
		c.mu.Lock()
		defer c.mu.Unlock()
		if noAnswer(err) {
			if c.outage.fails++; c.outage.fails >= statFails || backends.KindOf(err) == backends.Throttled {
				c.silent(err, statRetry)
			}
		}
		return backends.Record{}, err
	}
	where := ref
	if !missing {
		where = rec.Ref
	}
	st := c.collection(where.Collection)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered()
	if ref.IsCollection() {
		return rec, c.learnCollection(ref, missing)
	}
	if !missing {
		c.alias(ref, rec.Ref)
		delete(c.absent, ref)
	}
	if known, ok := c.learnStat(st, where, rec, !missing, asked); ok {
		return known, nil
	}
	c.noteAbsent(ref)
	if missing {
		return backends.Record{}, err
	}
	return backends.Record{}, notFound("stat", ref)
}

// learnCollection learns from a Stat of a collection whether the registry
// has it. The caller holds mu.
func (c *Catalog) learnCollection(ref backends.Ref, missing bool) error {
	if missing {
		c.noteAbsent(ref)
		if c.marks[ref.Collection].kind == markFound {
			c.setMark(ref.Collection, 0)
		}
		return notFound("stat", ref)
	}
	delete(c.absent, ref)
	if !c.inTop(ref.Collection) {
		c.setMark(ref.Collection, markFound)
	}
	return nil
}

// Full gives the full record of rec's ref: at most one Stat, which everybody
// who wants it shares, then kept until a listing shows a change, or for a
// ref that no listing shows until it is older than TTL. It may be of another Version
// than rec: then that is newer. NotFound if the image is gone. On any other
// error the record is what is known without asking, and may do.
func (c *Catalog) Full(ctx context.Context, rec backends.Record) (backends.Record, error) {
	if err := checkImage(rec.Ref); err != nil {
		return rec, err
	}
	ref := rec.Ref
	st := c.collection(ref.Collection)
	c.mu.Lock()
	known, ok := c.current(st, keyOf(ref))
	if ok && known.Full {
		_, listed := st.listed(keyOf(ref))
		if o := c.overlays[st.name][keyOf(ref)]; listed || o == nil || c.fresh(o.at) {
			c.mu.Unlock()
			return known, nil
		}
	}
	if !ok {
		known = rec
		if at, asked := c.absent[ref]; asked && c.now().Sub(at) < absentLife {
			c.mu.Unlock()
			return backends.Record{}, notFound("stat", ref)
		}
	}
	err := c.refusedStat(ref)
	if err == nil {
		f := c.flyStat(ref, false)
		c.mu.Unlock()
		var full backends.Record
		if full, err = f.wait(ctx); err == nil {
			return full, nil
		}
	} else {
		c.mu.Unlock()
	}
	switch {
	case errors.Is(err, backends.NotFound), ctx.Err() != nil:
		return backends.Record{}, err
	case known.Full:
		return known, nil // an old one, while the registry does not answer
	}
	return known, err
}

// Recheck asks for an image's record now, whatever is remembered of it: a
// caller found that it no longer holds (Stale). What the registry says replaces
// it, and a size or digest that was learned by reading is forgotten: it may have
// come from a broken answer.
func (c *Catalog) Recheck(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	if err := checkImage(ref); err != nil {
		return backends.Record{}, err
	}
	c.mu.Lock()
	if err := c.refusedStat(ref); err != nil {
		c.mu.Unlock()
		return backends.Record{}, err
	}
	c.unlearn(ref)
	f := c.flyStat(ref, false)
	c.mu.Unlock()
	return f.wait(ctx)
}

// Refresh asks the registry now, however fresh the listing is: for one
// collection, or with "" for everything. It returns the registry's error, and
// what was listed before stays.
func (c *Catalog) Refresh(ctx context.Context, name string) error {
	l, fetch := &c.top.listing, c.fetchTop
	if name != "" {
		if backends.CheckCollection(name) != nil {
			return notFound("refresh", backends.Ref{Collection: name})
		}
		st := c.collection(name)
		l, fetch = &st.listing, func(ctx context.Context) error { return c.fetchImages(ctx, st) }
	}
	for {
		c.mu.Lock()
		before := c.flights[l.key]
		if before == nil {
			break
		}
		c.mu.Unlock() // it was asked for before now
		before.wait(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if name == "" {
		c.staleBefore = c.now()
	}
	for ref := range c.absent {
		if name == "" || ref.Collection == name {
			delete(c.absent, ref)
		}
	}
	c.asked = nil
	for coll, over := range c.overlays {
		if name != "" && coll != name {
			continue
		}
		for key, o := range over {
			if o.listed && !o.own {
				c.setOverlay(backends.Ref{Collection: coll, Image: key.image, Tag: key.tag}, nil)
			}
		}
	}
	f := c.flyList(l, fetch)
	c.mu.Unlock()
	_, err := f.wait(ctx)
	return err
}
