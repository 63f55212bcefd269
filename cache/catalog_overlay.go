package cache

import (
	"hash/fnv"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// overlay is what this mount knows of one image beside the listing: the
// answer to a Stat, its own push, or its own deletion.
//
// Which of the two speaks is a question of time. A listing that was asked for
// before the overlay was learned says nothing against it. A later one does, as far as it
// tells of a change: the overlay ends when the listing shows another record
// than the one it was learned beside, or no longer shows an image that it did show. An image
// that no listing ever showed (a private one) stays until a Stat says NotFound.
type overlay struct {
	rec    backends.Record
	at     time.Time // own change: when it was acknowledged; Stat: when it was asked
	gone   bool      // there is no such image; rec holds only the ref
	own    bool      // changed by this mount
	listed bool      // a listing has shown it
	beside uint64    // fingerprint of the listed record that it was learned beside; 0: none
}

// fingerprint is equal for equal listed records, never 0.
func fingerprint(rec backends.Record) uint64 {
	e := newEncoder()
	e.record(rec)
	h := fnv.New64a()
	h.Write(e.b)
	return h.Sum64() | 1
}

// current gives what is known of an image now. The caller holds mu.
func (c *Catalog) current(st *collection, key imageKey) (backends.Record, bool) {
	listed, isListed := st.listed(key)
	o := c.overlays[st.name][key]
	if o == nil {
		return st.learned[key].apply(listed), isListed
	}
	rec := o.rec
	switch newer := st.at.After(o.at); {
	case o.gone && !newer, !isListed && o.listed && newer:
		return backends.Record{}, false
	case isListed && newer && (o.gone || o.beside != fingerprint(listed)):
		rec = listed
	case o.gone:
		return backends.Record{}, false
	}
	return st.learned[key].apply(rec), true
}

// settle lets a new listing of st end the overlays that it overrules. The
// caller holds mu.
func (c *Catalog) settle(st *collection) {
	st.merged = nil
	for key, o := range c.overlays[st.name] {
		if !st.at.After(o.at) {
			continue
		}
		ref := backends.Ref{Collection: st.name, Image: key.image, Tag: key.tag}
		listed, isListed := st.listed(key)
		sum := uint64(0)
		if isListed {
			sum = fingerprint(listed)
		}
		switch {
		case o.gone, !isListed && o.listed:
			c.setOverlay(ref, nil)
		case !isListed:
		case o.beside == sum && o.listed:
		case o.beside == sum, o.beside == 0 && o.rec.Version == listed.Version:
			kept := *o
			kept.listed, kept.beside = true, sum
			c.setOverlay(ref, &kept)
		default:
			c.setOverlay(ref, nil)
		}
	}
}

// setOverlay replaces, or with nil ends, the overlay of ref. The caller
// holds mu.
func (c *Catalog) setOverlay(ref backends.Ref, o *overlay) {
	if st := c.collections[ref.Collection]; st != nil {
		st.merged = nil
	}
	over, key := c.overlays[ref.Collection], keyOf(ref)
	if o == nil {
		delete(over, key)
		if len(over) == 0 {
			delete(c.overlays, ref.Collection)
		}
		c.index.del(bucketOver, refKey(ref))
		return
	}
	if over == nil {
		over = map[imageKey]*overlay{}
		c.overlays[ref.Collection] = over
	}
	over[key] = o
	e := newEncoder()
	e.bool(o.gone)
	e.bool(o.own)
	e.bool(o.listed)
	e.uint(o.beside)
	e.record(o.rec)
	c.index.put(bucketOver, refKey(ref), o.at, e.b)
}

// learnStat lays the answer of a Stat, asked at the given time, over the listing; ok
// is false for NotFound. It gives what is then known: this mount's own
// change, if there was one meanwhile. The caller holds mu and has st loaded.
func (c *Catalog) learnStat(st *collection, ref backends.Ref, rec backends.Record, ok bool, asked time.Time) (backends.Record, bool) {
	key := keyOf(ref)
	if o := c.overlays[st.name][key]; o != nil && o.own && o.at.After(asked) {
		return c.current(st, key)
	}
	listed, isListed := st.listed(key)
	switch {
	case ok:
		o := &overlay{rec: rec, at: asked, listed: isListed}
		if isListed {
			o.beside = fingerprint(listed)
		}
		c.setOverlay(ref, o)
	case isListed && !st.at.After(asked):
		c.setOverlay(ref, &overlay{rec: backends.Record{Ref: ref}, at: asked, gone: true})
	default:
		c.setOverlay(ref, nil)
	}
	return c.current(st, key)
}

// learnOwn lays a change by this mount, acknowledged just now, over the
// listing: rec, or with gone its absence. The caller holds mu.
func (c *Catalog) learnOwn(rec backends.Record, gone bool) {
	c.setOverlay(rec.Ref, &overlay{rec: rec, at: c.now(), gone: gone, own: true})
	if !gone {
		delete(c.absent, rec.Ref)
		delete(c.absent, backends.Ref{Collection: rec.Collection})
		if m, ok := c.marks[rec.Collection]; ok && m.kind != markFound {
			c.setMark(rec.Collection, 0)
		}
	}
}

// loadAll takes from the index what a catalog needs at once. Only NewCatalog
// calls it.
func (c *Catalog) loadAll() {
	if v, at, ok := c.index.get(bucketTop, "all"); ok {
		d := newDecoder(v)
		names := make([]string, d.count())
		for i := range names {
			names[i] = d.string()
		}
		if d.err == nil {
			c.top.names, c.top.at = names, at
		}
	}
	for _, e := range c.index.scan(bucketOver, "") {
		d := newDecoder(e.value)
		o := &overlay{at: e.at, gone: d.bool(), own: d.bool(), listed: d.bool(), beside: d.uint(), rec: d.record()}
		ref, ok := parseRefKey(e.key)
		if !ok || d.err != nil || o.rec.Ref != ref {
			continue
		}
		if c.overlays[ref.Collection] == nil {
			c.overlays[ref.Collection] = map[imageKey]*overlay{}
		}
		c.overlays[ref.Collection][keyOf(ref)] = o
	}
	for _, e := range c.index.scan(bucketMark, "") {
		d := newDecoder(e.value)
		if m := (mark{kind: markKind(d.uint()), at: e.at}); d.err == nil && backends.CheckCollection(e.key) == nil {
			c.marks[e.key] = m
		}
	}
	for _, e := range c.index.scan(bucketAlias, "") {
		d := newDecoder(e.value)
		actual := d.ref()
		if used, ok := parseRefKey(e.key); ok && d.err == nil && actual.Check() == nil {
			c.aliases[used] = actual
		}
	}
}

// loadCollection takes a collection's listing from the index.
func (c *Catalog) loadCollection(st *collection) {
	var recs []backends.Record
	v, at, ok := c.index.get(bucketList, st.name)
	if ok {
		recs, ok = decodeListing(v, st.name)
	}
	known := map[imageKey]learned{}
	for _, e := range c.index.scan(bucketLearn, st.name+"\x00") {
		d := newDecoder(e.value)
		l := learned{version: d.string(), size: d.int(), digest: d.digest()}
		if ref, valid := parseRefKey(e.key); valid && d.err == nil {
			known[keyOf(ref)] = l
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// A whole tree may have been listed meanwhile.
	if ok && st.at.IsZero() {
		st.recs, st.at = recs, at
	}
	if st.learned == nil {
		st.learned = known
	}
	st.merged = nil
}

func encodeListing(recs []backends.Record) []byte {
	e := newEncoder()
	e.uint(uint64(len(recs)))
	for _, r := range recs {
		e.record(r)
	}
	return e.b
}

func decodeListing(b []byte, name string) ([]backends.Record, bool) {
	d := newDecoder(b)
	recs := make([]backends.Record, d.count())
	for i := range recs {
		recs[i] = d.record()
		if d.err != nil || recs[i].Collection != name {
			return nil, false
		}
	}
	return recs, d.err == nil
}
