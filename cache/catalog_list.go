package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

const (
	listStall = time.Minute      // longest silence within a listing
	listTotal = 10 * time.Minute // longest listing
	listMax   = 2_000_000        // most records of one listing

	retryFirst = 30 * time.Second // wait after a failed listing; doubles
	retryMost  = 10 * time.Minute // until here
	statRetry  = 10 * time.Second // wait for everybody after statFails
	statFails  = 3                // failed Stats in a row
	longestAsk = 24 * time.Hour   // of waits that a registry asks for, the longest that is heeded
)

// listing is the age of a list and how asking for it went.
type listing struct {
	key   string    // of its flight
	at    time.Time // when it was asked for; zero: never got
	fails int       // in a row
	until time.Time // not asked for again before, after a failure
	err   error     // of the last failure
}

// outage remembers that the registry as a whole does not answer.
type outage struct {
	until  time.Time // nothing is asked before
	err    error
	fails  int  // Stats that failed in a row
	logged bool // once per outage
}

// flight is one request under way, for everybody who wants its result.
type flight struct {
	done chan struct{} // closed when rec and err are set
	rec  backends.Record
	err  error
}

// fly joins the flight of that key or starts it. Its context is that of the
// catalog: it outlives the callers. The caller holds mu.
func (c *Catalog) fly(key string, do func(context.Context) (backends.Record, error)) *flight {
	if f := c.flights[key]; f != nil {
		return f
	}
	f := &flight{done: make(chan struct{})}
	if c.closed {
		f.err = errCatalogClosed
		close(f.done)
		return f
	}
	c.flights[key] = f
	c.work.Go(func() {
		f.rec, f.err = do(c.ctx)
		c.mu.Lock()
		delete(c.flights, key)
		c.mu.Unlock()
		close(f.done)
	})
	return f
}

// wait gives the flight's outcome, or ctx's end.
func (f *flight) wait(ctx context.Context) (backends.Record, error) {
	select {
	case <-f.done:
		return f.rec, f.err
	case <-ctx.Done():
		return backends.Record{}, ctx.Err()
	}
}

// fresh reports whether a listing of that time need not be asked for. The
// caller holds mu.
func (c *Catalog) fresh(at time.Time) bool {
	age := c.now().Sub(at)
	return !at.IsZero() && !at.Before(c.staleBefore) && age < c.ttl && age > -c.ttl
}

// ensure returns nil once there is a listing to serve: a fresh one, or after
// an error or patience an older one.
func (c *Catalog) ensure(ctx context.Context, l *listing, fetch func(context.Context) error, patience time.Duration) error {
	c.mu.Lock()
	if c.fresh(l.at) {
		c.mu.Unlock()
		return nil
	}
	have, now := !l.at.IsZero(), c.now()
	if err := c.refused(l, now); err != nil {
		c.mu.Unlock()
		if have {
			return nil
		}
		return err
	}
	f := c.flyList(l, fetch)
	c.mu.Unlock()
	if !have {
		_, err := f.wait(ctx)
		return err
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-f.done:
		if errors.Is(f.err, backends.NotFound) {
			return f.err
		}
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// refused gives the error to serve instead of asking. The caller holds mu.
func (c *Catalog) refused(l *listing, now time.Time) error {
	switch {
	case now.Before(l.until):
		return l.err
	case now.Before(c.outage.until):
		return c.outage.err
	}
	return nil
}

// flyList starts or joins the flight for a listing, and notes how it went.
// The caller holds mu.
func (c *Catalog) flyList(l *listing, fetch func(context.Context) error) *flight {
	return c.fly(l.key, func(ctx context.Context) (backends.Record, error) {
		err := fetch(ctx)
		if ctx.Err() != nil {
			return backends.Record{}, errCatalogClosed
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if err == nil || errors.Is(err, backends.NotFound) {
			l.fails, l.until, l.err = 0, time.Time{}, nil
			c.answered()
			return backends.Record{}, err
		}
		wait := min(retryFirst<<min(l.fails, 10), retryMost)
		wait = max(wait, min(backends.RetryAfter(err), longestAsk))
		l.fails++
		l.err, l.until = err, c.now().Add(wait)
		c.silent(err, min(wait, statRetry))
		if l != &c.top.listing && errors.Is(err, backends.Denied) {
			// A private collection that is known by name, not an outage.
			c.opt.Log.Debug("a collection's images cannot be listed", "error", err)
		} else if !c.outage.logged {
			c.outage.logged = true
			c.opt.Log.Warn("the registry gives no listing", "registry", c.opt.Registry,
				"serving_old_one", !l.at.IsZero(), "next_try_in", wait.String(), "error", err)
		}
		return backends.Record{}, err
	})
}

// answered ends an outage. The caller holds mu.
func (c *Catalog) answered() {
	if c.outage.logged {
		c.opt.Log.Info("the registry answers again", "registry", c.opt.Registry)
	}
	c.outage = outage{}
}

// silent notes that the registry as a whole does not answer, if err says
// so. The caller holds mu.
func (c *Catalog) silent(err error, wait time.Duration) {
	switch backends.KindOf(err) {
	case backends.Unavailable, backends.Timeout, backends.Throttled:
		wait = max(wait, min(backends.RetryAfter(err), longestAsk))
		c.outage.err, c.outage.until = err, c.now().Add(wait)
	}
}

// ensureImages is ensure for the images of a collection, whatever kind of
// request brings them. NotFound if the registry has no such collection.
func (c *Catalog) ensureImages(ctx context.Context, name string, patience time.Duration) error {
	st := c.collection(name)
	c.mu.Lock()
	tree := c.opt.Backend.Tree != nil && !c.noTree
	made := c.marks[name].kind == markMade && st.at.IsZero()
	c.mu.Unlock()
	if made {
		return nil // the registry has nothing to tell of it yet
	}
	if tree {
		if err := c.ensure(ctx, &c.top.listing, c.fetchTop, patience); err != nil {
			return err
		}
	}
	c.mu.Lock()
	if tree && !c.noTree && c.inTop(name) && !st.at.IsZero() && !st.at.Before(c.top.at) {
		c.mu.Unlock()
		return nil // that was it
	}
	guess := false
	if st.at.IsZero() && c.fresh(c.top.at) && !c.inTop(name) {
		// The registry did not show this one.
		guess = !c.remembers(name) && c.marks[name].kind != markFound
		var err error
		if !guess || !c.isParent(name) {
			err = c.mayAsk("list", absentListing(name), guess)
		}
		if err != nil || guess && c.isParent(name) {
			if !c.exists(st) {
				delete(c.collections, name)
			}
			c.mu.Unlock()
			return err
		}
	}
	c.mu.Unlock()
	err := c.ensure(ctx, &st.listing, func(ctx context.Context) error { return c.fetchImages(ctx, st) }, patience)
	if guess && err == nil {
		c.mu.Lock()
		c.giveBack()
		c.mu.Unlock()
	}
	return err
}

// absentListing stands in Catalog.absent for a collection whose images
// cannot be listed. No image or collection has such a Ref.
func absentListing(name string) backends.Ref {
	return backends.Ref{Collection: name, Tag: "images"}
}

// fetchTop asks for the collections: with their images where one request
// tells all.
func (c *Catalog) fetchTop(ctx context.Context) error {
	c.mu.Lock()
	tree := c.opt.Backend.Tree != nil && !c.noTree
	asked := c.now()
	c.mu.Unlock()
	if tree {
		err := c.fetchTree(ctx, asked)
		if !errors.Is(err, backends.Unsupported) {
			return err
		}
		c.mu.Lock()
		c.noTree = true
		c.mu.Unlock()
	}
	return c.fetchCollections(ctx, asked)
}

func (c *Catalog) fetchCollections(ctx context.Context, asked time.Time) error {
	var names []string
	left := leftOut{}
	err := walk(ctx, c.opt.Backend.Collections, func(name string) {
		if err := backends.CheckCollection(name); err != nil {
			left.add(name)
			return
		}
		names = append(names, name)
	})
	if errors.Is(err, backends.Unsupported) || errors.Is(err, backends.NotFound) {
		err = nil // a registry that shows no collections has none to show
	}
	if err != nil {
		return err
	}
	c.reportLeft(left, "")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setTop(names, asked)
	return nil
}

func (c *Catalog) fetchImages(ctx context.Context, st *collection) error {
	asked := c.now()
	recs, left := []backends.Record{}, leftOut{}
	err := walk(ctx, func(ctx context.Context) iter.Seq2[backends.Record, error] {
		return c.opt.Backend.Images(ctx, st.name)
	}, func(rec backends.Record) {
		if rec.Collection != st.name || rec.IsCollection() || rec.Check() != nil {
			left.add(rec.Ref.String())
			return
		}
		recs = append(recs, normal(rec))
	})
	ref := backends.Ref{Collection: st.name}
	if errors.Is(err, backends.NotFound) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.inTop(st.name) {
			c.forget(st, asked)
			return notFound("list", ref)
		}
		err = nil // a collection that the registry shows, without images
	}
	if errors.Is(err, backends.Unsupported) {
		err = nil
	}
	if err != nil {
		return err
	}
	c.reportLeft(left, st.name)
	recs = sortListing(recs)
	k := indexKey{bucketList, st.name}
	sealed := seal(k, asked, encodeListing(recs))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setImages(st, recs, asked)
	c.index.change(k, sealed)
	if !c.top.at.IsZero() && !c.inTop(st.name) && len(recs) > 0 {
		c.setMark(st.name, markFound)
	}
	return nil
}

// fetchTree takes the listings of all collections from one request.
func (c *Catalog) fetchTree(ctx context.Context, asked time.Time) error {
	all, left := map[string][]backends.Record{}, leftOut{}
	err := walk(ctx, c.opt.Backend.Tree.Tree, func(rec backends.Record) {
		if rec.Check() != nil {
			left.add(rec.Ref.String())
			return
		}
		recs := all[rec.Collection]
		if !rec.IsCollection() {
			recs = append(recs, normal(rec))
		}
		all[rec.Collection] = recs
	})
	if err != nil {
		return err
	}
	c.reportLeft(left, "")
	names := make([]string, 0, len(all))
	batch := map[indexKey][]byte{}
	states := map[string]*collection{}
	for name, recs := range all {
		names = append(names, name)
		all[name] = sortListing(recs)
		k := indexKey{bucketList, name}
		batch[k] = seal(k, asked, encodeListing(all[name]))
		states[name] = c.collection(name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, st := range states {
		if !st.at.After(asked) { // a refresh of this one may have been later
			c.setImages(st, all[name], asked)
		} else {
			delete(batch, indexKey{bucketList, name})
		}
	}
	c.index.changeAll(batch)
	c.setTop(names, asked)
	return nil
}

// setTop takes over a list of collections. The caller holds mu.
func (c *Catalog) setTop(names []string, asked time.Time) {
	slices.Sort(names)
	before := c.top.names
	c.top.names, c.top.at = slices.Compact(names), asked
	for _, name := range before {
		if c.inTop(name) {
			continue
		}
		st := c.collections[name]
		if st == nil {
			st = &collection{name: name}
		}
		if !st.at.After(asked) {
			c.forget(st, asked)
		}
	}
	for name, m := range c.marks {
		if asked.After(m.at) && (m.kind == markRemoved || c.inTop(name)) {
			c.setMark(name, 0)
		}
	}
	e := newEncoder()
	e.uint(uint64(len(c.top.names)))
	for _, name := range c.top.names {
		e.string(name)
	}
	c.index.put(bucketTop, "all", asked, e.b)
}

// setImages takes over a collection's listing. The caller holds mu.
func (c *Catalog) setImages(st *collection, recs []backends.Record, asked time.Time) {
	st.recs, st.at = recs, asked
	c.settle(st)
}

// forget notes that the registry shows no such collection. An image that was
// found by its name stays until a Stat says otherwise. The caller holds mu.
func (c *Catalog) forget(st *collection, asked time.Time) {
	st.recs, st.at = nil, asked
	c.settle(st) // ends what a listing had shown
	st.at = time.Time{}
	c.index.del(bucketList, st.name)
	c.noteAbsent(absentListing(st.name))
	if c.marks[st.name].kind == markFound {
		c.setMark(st.name, 0)
	}
	if !c.exists(st) {
		delete(c.collections, st.name)
	}
}

// walk consumes a listing to its end, within the bounds of time and number.
func walk[T any](ctx context.Context, list func(context.Context) iter.Seq2[T, error], take func(T)) error {
	ctx, cancel := context.WithTimeout(ctx, listTotal)
	defer cancel()
	ctx, stall := context.WithCancelCause(ctx)
	defer stall(nil)
	silence := fmt.Errorf("nothing for %v", listStall)
	timer := time.AfterFunc(listStall, func() { stall(silence) })
	defer timer.Stop()
	n := 0
	for item, err := range list(ctx) {
		switch {
		case err != nil && context.Cause(ctx) == silence:
			return &backends.Error{Op: "list", Kind: backends.Timeout, Err: silence}
		case err != nil:
			return err
		}
		if n++; n > listMax {
			return backends.Errorf("list", backends.Ref{}, backends.Invalid, "more than %d entries", listMax)
		}
		timer.Reset(listStall)
		take(item)
	}
	return nil
}

// normal makes a record comparable with one that was read from the index.
func normal(rec backends.Record) backends.Record {
	rec.Size = max(rec.Size, backends.UnknownSize)
	if !rec.Created.IsZero() {
		rec.Created = time.Unix(rec.Created.Unix(), int64(rec.Created.Nanosecond())).UTC()
	}
	return rec
}

// sortListing sorts by file name; of several records for one ref the newest
// stays, or by version if they are of one age.
func sortListing(recs []backends.Record) []backends.Record {
	slices.SortFunc(recs, func(a, b backends.Record) int {
		return cmp.Or(compareNames(a.Ref, b.Ref), b.Created.Compare(a.Created), cmp.Compare(b.Version, a.Version))
	})
	return slices.CompactFunc(recs, func(a, b backends.Record) bool { return a.Ref == b.Ref })
}

// leftOut counts names that cannot be shown.
type leftOut struct {
	n      int
	sample string
}

func (l *leftOut) add(name string) {
	if l.n++; l.n == 1 {
		l.sample = strconv.QuoteToASCII(cut(name, 80))
	}
}

func (c *Catalog) reportLeft(l leftOut, name string) {
	if l.n > 0 {
		c.opt.Log.Warn("names that cannot be paths are left out of a listing",
			"collection", name, "count", l.n, "first", l.sample)
	}
}
