package cache

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

const (
	// listPatience is how long a caller who could have a stale listing waits
	// for a fresh one; lookupPatience the same while the kernel holds a
	// directory's lock.
	listPatience   = 10 * time.Second
	lookupPatience = 2 * time.Second

	absentLife   = time.Hour // how long "there is no such name" is believed
	absentBudget = 10        // names absent from a fresh listing that are asked for, per absentLife
	absentMax    = 10_000    // names of that kind remembered

	aliasMax  = 10_000   // remembered spellings
	learnMax  = 200_000  // remembered sizes
	noteMax   = 5_000    // remembered notes
	noteBytes = 64 << 20 // all notes together, in bytes
	noteSize  = 1 << 20  // one note, in bytes
)

// ErrNotEmpty says that a collection still holds images or collections.
var ErrNotEmpty = errors.New("the collection is not empty")

var errCatalogClosed = &backends.Error{Op: "catalog", Kind: backends.Unavailable, Err: errors.New("the mount is shutting down")}

// CatalogOptions describe what a catalog remembers, and where.
type CatalogOptions struct {
	Registry string        // identity, for logs; holds no credential
	Backend  backends.Set  // stays the caller's
	TTL      time.Duration // age up to which a listing is fresh; Backend.MinListAge can only raise it
	Index    *Index        // closed by Catalog.Close
	Log      *slog.Logger
	Now      func() time.Time
}

// Catalog is what is remembered of one registry: collections, images, their
// records, each with its age. It is the only caller of the backend's listing, Stat, Push,
// Move, Delete and Tree. All methods are safe for concurrent use.
//
// A listing is asked for once, whoever wants it, and goes on when the first
// one who wanted it leaves. It is kept only when complete, across restarts
// too. When it is older than TTL it is asked for again; if that fails, or takes long,
// the old one serves. What this mount changed or learned by Stat lies over
// the listings (see overlay), so own changes show at once.
//
// A dead registry is left alone for a while after each failure: 30 s,
// then longer, or what it asked for.
type Catalog struct {
	opt    CatalogOptions
	ttl    time.Duration
	index  *Index
	ctx    context.Context // of requests; ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // requests under way

	// mu guards what follows. It is never held across network or disk; the
	// only lock taken under it is Index.mu.
	mu          sync.Mutex
	closed      bool
	top         topListing
	noTree      bool // the Tree capability turned out to be Unsupported
	collections map[string]*collection
	overlays    map[string]map[imageKey]*overlay // by collection
	marks       map[string]mark                  // collections made or removed here
	aliases     map[backends.Ref]backends.Ref    // a name that was used: the registry's spelling
	absent      map[backends.Ref]time.Time       // names asked for in vain
	asked       []time.Time                      // when such names were asked for
	flights     map[string]*flight
	staleBefore time.Time // listings from before this time are not fresh
	outage      outage
}

// imageKey is a Ref within a known collection.
type imageKey struct{ image, tag string }

func keyOf(ref backends.Ref) imageKey { return imageKey{ref.Image, ref.Tag} }

// topListing is the list of collections.
type topListing struct {
	listing
	names []string // sorted
}

// collection is one collection's listing and what goes with it.
type collection struct {
	listing
	name string
	load sync.Once
	recs []backends.Record // as listed, sorted by file name; never written once set

	learned map[imageKey]learned
	merged  []backends.Record // recs with overlay and learned; nil: to be made
}

// mark says of a collection what the list of collections does not.
type mark struct {
	kind markKind
	at   time.Time
}

type markKind uint8

const (
	markMade    markKind = iota + 1 // it exists here only, until its first image
	markRemoved                     // empty and removed here; the registry may still list it
	markFound                       // the registry has it and does not list it
)

// learned is a size and digest that was settled by reading the image.
type learned struct {
	version string
	size    int64
	digest  backends.Digest
}

// The buckets of the index.
const (
	bucketTop   = "collections"
	bucketList  = "listings"
	bucketOver  = "overlays"
	bucketMark  = "marks"
	bucketAlias = "aliases"
	bucketLearn = "learned"
	bucketNote  = "notes"
)

// NewCatalog makes a catalog from what the index remembers; it asks the
// registry nothing. The caller closes it, which closes the index.
func NewCatalog(opt CatalogOptions) *Catalog {
	c := &Catalog{
		opt: opt, ttl: max(opt.TTL, opt.Backend.MinListAge), index: opt.Index,
		top:         topListing{listing: listing{key: "collections"}},
		collections: map[string]*collection{}, overlays: map[string]map[imageKey]*overlay{},
		marks: map[string]mark{}, aliases: map[backends.Ref]backends.Ref{},
		absent: map[backends.Ref]time.Time{}, flights: map[string]*flight{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.index.prune(bucketLearn, learnMax, 64<<20)
	c.index.prune(bucketNote, noteMax, noteBytes)
	c.loadAll()
	return c
}

// Close ends requests, waits for them to have ended, and closes the index.
func (c *Catalog) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	return c.index.Close()
}

// Collections gives the full names ("a/b") of all known collections, sorted,
// those that exist only here included. The slice is the caller's. The error is
// that of the registry if it never gave a listing.
func (c *Catalog) Collections(ctx context.Context) ([]string, error) {
	err := c.ensure(ctx, &c.top.listing, c.fetchTop, listPatience)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names(), nil
}

// names lists the known collections. The caller holds mu.
func (c *Catalog) names() []string {
	all := make(map[string]bool, len(c.top.names))
	for _, name := range c.top.names {
		all[name] = true
	}
	for name := range c.overlays {
		if c.remembers(name) {
			all[name] = true
		}
	}
	for name, m := range c.marks {
		switch {
		case m.kind != markRemoved:
			all[name] = true
		case !c.remembers(name) && !c.top.at.After(m.at):
			delete(all, name)
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// remembers reports whether an image of the collection is known beside the
// listings. The caller holds mu.
func (c *Catalog) remembers(name string) bool {
	for _, o := range c.overlays[name] {
		if !o.gone {
			return true
		}
	}
	return false
}

// Images gives the records of a collection's images, sorted by FileName.
// The slice is shared: it must not be written to. A collection that is only
// the parent of others has none. NotFound if there is no such collection.
func (c *Catalog) Images(ctx context.Context, name string) ([]backends.Record, error) {
	if backends.CheckCollection(name) != nil {
		return nil, notFound("list", backends.Ref{Collection: name})
	}
	err := c.ensureImages(ctx, name, listPatience)
	if err != nil && !errors.Is(err, backends.NotFound) {
		return nil, err
	}
	st := c.collection(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	recs := c.merged(st)
	if err != nil && len(recs) == 0 && !c.exists(st) {
		return nil, err
	}
	return recs, nil
}

// exists reports whether the collection is known. The caller holds mu.
func (c *Catalog) exists(st *collection) bool {
	m, marked := c.marks[st.name]
	switch {
	case c.remembers(st.name), c.isParent(st.name), marked && m.kind != markRemoved:
		return true
	case marked && !c.top.at.After(m.at) && !st.at.After(m.at):
		return false
	}
	return c.inTop(st.name) || !st.at.IsZero() && !c.top.at.After(st.at)
}

// inTop reports whether the list of collections has name. The caller holds mu.
func (c *Catalog) inTop(name string) bool {
	_, ok := slices.BinarySearch(c.top.names, name)
	return ok
}

// isParent reports whether a known collection lies below name. The caller
// holds mu.
func (c *Catalog) isParent(name string) bool {
	below := name + "/"
	if i, _ := slices.BinarySearch(c.top.names, below); i < len(c.top.names) && strings.HasPrefix(c.top.names[i], below) {
		return true
	}
	for other := range c.overlays {
		if strings.HasPrefix(other, below) && c.remembers(other) {
			return true
		}
	}
	for other, m := range c.marks {
		if strings.HasPrefix(other, below) && m.kind != markRemoved {
			return true
		}
	}
	return false
}

// collection gives the state of one collection, with what the index holds
// of it. It reads the disk at first use.
func (c *Catalog) collection(name string) *collection {
	c.mu.Lock()
	st := c.collections[name]
	if st == nil {
		st = &collection{name: name, listing: listing{key: "images\x00" + name}}
		c.collections[name] = st
	}
	c.mu.Unlock()
	st.load.Do(func() { c.loadCollection(st) })
	return st
}

// listed finds a record in the listing. The caller holds mu.
func (st *collection) listed(key imageKey) (backends.Record, bool) {
	ref := backends.Ref{Collection: st.name, Image: key.image, Tag: key.tag}
	i, ok := slices.BinarySearchFunc(st.recs, ref, func(r backends.Record, ref backends.Ref) int {
		return compareNames(r.Ref, ref)
	})
	if !ok {
		return backends.Record{}, false
	}
	return st.recs[i], true
}

// compareNames orders images of one collection by FileName.
func compareNames(a, b backends.Ref) int {
	n := min(len(a.Image), len(b.Image))
	if d := strings.Compare(a.Image[:n], b.Image[:n]); d != 0 {
		return d
	}
	return strings.Compare(a.FileName(), b.FileName())
}

// merged gives the collection's records as they are known now. The caller
// holds mu.
func (c *Catalog) merged(st *collection) []backends.Record {
	over := c.overlays[st.name]
	if len(over) == 0 && len(st.learned) == 0 {
		return st.recs
	}
	if st.merged != nil {
		return st.merged
	}
	all := make([]backends.Record, 0, len(st.recs)+len(over))
	for _, r := range st.recs {
		if rec, ok := c.current(st, keyOf(r.Ref)); ok {
			all = append(all, rec)
		}
	}
	sorted := len(all)
	for key := range over {
		if _, listed := st.listed(key); !listed {
			if rec, ok := c.current(st, key); ok {
				all = append(all, rec)
			}
		}
	}
	if len(all) > sorted {
		slices.SortFunc(all, func(a, b backends.Record) int { return compareNames(a.Ref, b.Ref) })
	}
	st.merged = all
	return all
}

// Note gives what SetNote kept under key, perhaps in an earlier run.
func (c *Catalog) Note(key string) ([]byte, bool) {
	v, _, ok := c.index.get(bucketNote, key)
	return v, ok
}

// SetNote keeps a small fact by a key that determines it, such as a digest.
// Notes over 1 MiB are not kept, old ones are forgotten.
func (c *Catalog) SetNote(key string, value []byte) {
	if len(value) <= noteSize {
		c.index.put(bucketNote, key, c.now(), slices.Clone(value))
	}
}

// Learn keeps a size and digest that were settled by reading rec's bytes;
// records of the same ref and version carry them from now on. A size
// of UnknownSize or a zero digest teaches nothing.
func (c *Catalog) Learn(rec backends.Record, size int64, digest backends.Digest) {
	if rec.Version == "" || rec.Check() != nil || size < 0 && digest.IsZero() {
		return
	}
	st := c.collection(rec.Collection)
	c.mu.Lock()
	defer c.mu.Unlock()
	key := keyOf(rec.Ref)
	was := st.learned[key]
	now := learned{version: rec.Version, size: size, digest: digest}
	if was.version == now.version {
		if now.size < 0 {
			now.size = was.size
		}
		if now.digest.IsZero() {
			now.digest = was.digest
		}
	}
	if was == now {
		return
	}
	if st.learned == nil {
		st.learned = map[imageKey]learned{}
	}
	st.learned[key] = now
	st.merged = nil
	e := newEncoder()
	e.string(now.version)
	e.int(now.size)
	e.digest(now.digest)
	c.index.put(bucketLearn, refKey(rec.Ref), c.now(), e.b)
}

// unlearn forgets what Learn kept of an image. The caller holds mu.
func (c *Catalog) unlearn(ref backends.Ref) {
	ref = c.actual(ref)
	st := c.collections[ref.Collection]
	if st == nil {
		return
	}
	delete(st.learned, keyOf(ref))
	st.merged = nil
	c.index.del(bucketLearn, refKey(ref))
}

func (l learned) apply(rec backends.Record) backends.Record {
	if l.version == "" || l.version != rec.Version {
		return rec
	}
	if rec.Size < 0 && l.size >= 0 {
		rec.Size = l.size
	}
	if rec.Digest.IsZero() {
		rec.Digest = l.digest
	}
	return rec
}

// now is the time of day without the monotonic clock, which stands still
// while a laptop sleeps and does not survive a restart.
func (c *Catalog) now() time.Time { return c.opt.Now().Round(0) }

func notFound(op string, ref backends.Ref) error {
	return &backends.Error{Op: op, Ref: ref, Kind: backends.NotFound}
}

// refKey is a Ref as a key of the index; no part of a checked Ref holds NUL.
func refKey(ref backends.Ref) string {
	return ref.Collection + "\x00" + ref.Image + "\x00" + ref.Tag
}

func parseRefKey(s string) (backends.Ref, bool) {
	p := strings.Split(s, "\x00")
	if len(p) != 3 {
		return backends.Ref{}, false
	}
	ref := backends.Ref{Collection: p[0], Image: p[1], Tag: p[2]}
	return ref, ref.Check() == nil
}
