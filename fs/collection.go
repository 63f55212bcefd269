package fs

import (
	"context"
	"errors"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/cache"
)

const (
	// lookupLimit is the longest a look-up waits for the registry: the kernel
	// holds the directory meanwhile.
	lookupLimit = 2 * time.Second
	// listLimit is the longest that reading a directory waits.
	listLimit = 90 * time.Second
	// deleteLimit is the longest that unlink waits for an answer.
	deleteLimit = 10 * time.Second
	// dirTimeout is how long the kernel may trust a directory's entry. Entries of images
	// are not cached: an overwrite has to reach the daemon, and a look-up
	// costs it no request.
	dirTimeout = time.Second
)

// collectionNode is a directory: the mount's root (name ""), a collection, or
// a parent of collections.
type collectionNode struct {
	fusefs.Inode
	m    *mount
	name string
}

var (
	_ fusefs.NodeLookuper      = (*collectionNode)(nil)
	_ fusefs.NodeReaddirer     = (*collectionNode)(nil)
	_ fusefs.NodeGetattrer     = (*collectionNode)(nil)
	_ fusefs.NodeSetattrer     = (*collectionNode)(nil)
	_ fusefs.NodeCreater       = (*collectionNode)(nil)
	_ fusefs.NodeMknoder       = (*collectionNode)(nil)
	_ fusefs.NodeMkdirer       = (*collectionNode)(nil)
	_ fusefs.NodeUnlinker      = (*collectionNode)(nil)
	_ fusefs.NodeRmdirer       = (*collectionNode)(nil)
	_ fusefs.NodeRenamer       = (*collectionNode)(nil)
	_ fusefs.NodeStatfser      = (*collectionNode)(nil)
	_ fusefs.NodeGetxattrer    = (*collectionNode)(nil)
	_ fusefs.NodeListxattrer   = (*collectionNode)(nil)
	_ fusefs.NodeSetxattrer    = (*collectionNode)(nil)
	_ fusefs.NodeRemovexattrer = (*collectionNode)(nil)
)

func (d *collectionNode) ref() backends.Ref { return backends.Ref{Collection: d.name} }

func (d *collectionNode) attr(a *fuse.Attr) {
	a.Mode = syscall.S_IFDIR | uint32(d.m.opts.DirMode.Perm())
	a.Nlink = 2
	a.Uid, a.Gid = d.m.opts.UID, d.m.opts.GID
	a.Ino = d.ino()
	a.SetTimes(nil, &d.m.started, &d.m.started)
}

func (d *collectionNode) ino() uint64 {
	if d.name == "" {
		return 1
	}
	return inodeNumber(d.m.opts.Source, d.name)
}

// Getattr gives the directory's attributes; it asks nobody.
func (d *collectionNode) Getattr(_ context.Context, _ fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.attr(&out.Attr)
	out.SetTimeout(dirTimeout)
	return 0
}

// Setattr accepts times and modes without keeping them: owners and modes come from
// the mount's options, and cp -p and rsync -a must not fail on them.
func (d *collectionNode) Setattr(ctx context.Context, f fusefs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return d.Getattr(ctx, f, out)
}

// Lookup resolves one name, in this order: a file that exists only in this
// mount, an image, a directory. It waits for the registry lookupLimit at most.
func (d *collectionNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	if local := d.m.localFile(d.name, name); local != nil {
		ref := local.reference()
		if own := d.m.replacementFor(ctx, ref, func() *stageNode { return d.m.newStage(d.name, name, ref, nil) }); own != nil {
			local = own
		}
		return local.entry(ctx, d, out), 0
	}
	if isScratch(name) {
		return nil, syscall.ENOENT
	}
	wait, cancel := d.m.killable(ctx, lookupLimit)
	defer cancel()
	rec, err := d.find(wait, name)
	if err == nil {
		if own := d.m.replacementFor(ctx, rec.Ref, func() *stageNode { return d.m.newStage(d.name, name, rec.Ref, &rec) }); own != nil {
			return own.entry(ctx, d, out), 0
		}
		return d.m.image(rec).entry(ctx, d, out), 0
	}
	if !errors.Is(err, backends.NotFound) {
		return nil, d.m.fail("lookup", backends.Ref{Collection: d.name, Image: name}, err)
	}
	if !isCollectionName(d.name, name) {
		return nil, syscall.ENOENT
	}
	child := join(d.name, name)
	has, err := d.m.hasDirectory(wait, child, isBare(name))
	switch {
	case err != nil:
		return nil, d.m.fail("lookup", backends.Ref{Collection: child}, err)
	case !has:
		return nil, syscall.ENOENT
	}
	return d.child(ctx, child, out), 0
}

func (d *collectionNode) child(ctx context.Context, collection string, out *fuse.EntryOut) *fusefs.Inode {
	node := &collectionNode{m: d.m, name: collection}
	node.attr(&out.Attr)
	out.SetEntryTimeout(dirTimeout)
	out.SetAttrTimeout(dirTimeout)
	return d.NewInode(ctx, node, fusefs.StableAttr{Mode: syscall.S_IFDIR, Ino: node.ino()})
}

// find resolves a file name to an image's record. What is known comes
// first, for each reading of the name; only the likeliest one may cost a request.
func (d *collectionNode) find(ctx context.Context, name string) (backends.Record, error) {
	all := targets(d.name, name)
	if len(all) == 0 {
		return backends.Record{}, &backends.Error{Op: "lookup", Kind: backends.NotFound}
	}
	for _, t := range all[1:] {
		if rec, ok := d.m.cache.Catalog.Known(t.Ref); ok && (t.version == "" || rec.Matches(t.version)) {
			if _, ok := d.m.cache.Catalog.Known(all[0].Ref); !ok {
				return rec, nil
			}
		}
	}
	if v := all[0].version; v != "" {
		return d.m.cache.Catalog.FindVersion(ctx, all[0].Ref, v)
	}
	return d.m.cache.Catalog.Find(ctx, all[0].Ref)
}

// Readdir lists sub-collections, images and this mount's own files, sorted. It
// costs at most one listing, and none while the listing is fresh.
func (d *collectionNode) Readdir(ctx context.Context) (fusefs.DirStream, syscall.Errno) {
	wait, cancel := d.m.killable(ctx, listLimit)
	defer cancel()
	names := map[string]fuse.DirEntry{}
	all, err := d.m.cache.Catalog.Collections(wait)
	if err != nil {
		return nil, d.m.fail("list", d.ref(), err)
	}
	for _, sub := range below(all, d.name) {
		node := collectionNode{m: d.m, name: join(d.name, sub)}
		names[sub] = fuse.DirEntry{Name: sub, Mode: syscall.S_IFDIR, Ino: node.ino()}
	}
	if d.name != "" {
		records, err := d.m.cache.Catalog.Images(wait, d.name)
		if err != nil && (!errors.Is(err, backends.NotFound) || len(names) == 0) {
			return nil, d.m.fail("list", d.ref(), err)
		}
		for _, rec := range records {
			name := rec.FileName()
			names[name] = fuse.DirEntry{Name: name, Mode: syscall.S_IFREG, Ino: d.m.inoOf(rec)}
		}
	}
	for name, node := range d.m.localFiles(d.name) {
		names[name] = fuse.DirEntry{Name: name, Mode: syscall.S_IFREG, Ino: node.ino}
	}
	entries := make([]fuse.DirEntry, 0, len(names))
	for _, e := range names {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b fuse.DirEntry) int { return strings.Compare(a.Name, b.Name) })
	return fusefs.NewListDirStream(entries), 0
}

// below gives the names directly under dir in a sorted list of collections.
func below(all []string, dir string) []string {
	prefix := ""
	if dir != "" {
		prefix = dir + "/"
	}
	var names []string
	for _, c := range all[sort.SearchStrings(all, prefix):] {
		rest, ok := strings.CutPrefix(c, prefix)
		if !ok {
			break
		}
		name, _, _ := strings.Cut(rest, "/")
		if name != "" && (len(names) == 0 || names[len(names)-1] != name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// hasDirectory reports whether path is a collection or the parent of one. Only
// with ask may it ask the registry for one that no listing shows.
func (m *mount) hasDirectory(ctx context.Context, path string, ask bool) (bool, error) {
	all, err := m.cache.Catalog.Collections(ctx)
	if err == nil && len(below(all, path)) > 0 {
		return true, nil
	}
	if _, listed := slices.BinarySearch(all, path); listed || !ask {
		return listed, nil
	}
	return m.cache.Catalog.HasCollection(ctx, path)
}

// Mkdir makes a collection that exists in this mount until its first image
// is pushed.
func (d *collectionNode) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	if errno := d.m.mayChange(nil); errno != 0 {
		return nil, errno
	}
	child := join(d.name, name)
	if isScratch(name) || strings.Contains(name, ":") || backends.CheckCollection(child) != nil {
		return nil, d.m.fail("mkdir", backends.Ref{Collection: child}, backends.Errorf("mkdir", backends.Ref{Collection: child}, backends.Invalid,
			"%q cannot name a collection; %s", name, nameForm))
	}
	wait, cancel := d.m.killable(ctx, lookupLimit)
	defer cancel()
	if err := d.m.cache.Catalog.MakeCollection(wait, child); err != nil {
		return nil, d.m.fail("mkdir", backends.Ref{Collection: child}, err)
	}
	return d.child(ctx, child, out), 0
}

// Rmdir removes an empty collection.
func (d *collectionNode) Rmdir(ctx context.Context, name string) syscall.Errno {
	if errno := d.m.mayChange(nil); errno != 0 {
		return errno
	}
	child := join(d.name, name)
	if len(d.m.localFiles(child)) > 0 {
		return syscall.ENOTEMPTY
	}
	wait, cancel := d.m.killable(ctx, listLimit)
	defer cancel()
	all, err := d.m.cache.Catalog.Collections(wait)
	if err == nil && len(below(all, child)) > 0 {
		return syscall.ENOTEMPTY
	}
	err = d.m.cache.Catalog.RemoveCollection(wait, child)
	if errors.Is(err, cache.ErrNotEmpty) {
		return syscall.ENOTEMPTY
	}
	return d.m.fail("rmdir", backends.Ref{Collection: child}, err)
}

// Unlink drops a file of this mount, or deletes an image in the registry. It
// returns 0 only once the registry has said so; without an answer in
// deleteLimit it is EIO, and the deletion may still happen.
func (d *collectionNode) Unlink(ctx context.Context, name string) syscall.Errno {
	if local := d.m.localFile(d.name, name); local != nil {
		local.discard()
		return 0
	}
	wait, cancel := d.m.killable(ctx, deleteLimit)
	defer cancel()
	rec, err := d.find(wait, name)
	if err != nil {
		return d.m.fail("delete", backends.Ref{Collection: d.name, Image: name}, err)
	}
	if errno := d.m.mayChange(&rec); errno != 0 {
		return errno
	}
	err = await(wait, func() error { return d.m.cache.Catalog.Delete(d.m.life, rec) })
	if errors.Is(err, context.DeadlineExceeded) {
		err = backends.Errorf("delete", rec.Ref, backends.Unavailable, "no answer in %v; the image may be deleted later", deleteLimit)
	}
	if errors.Is(err, backends.NotFound) {
		return 0 // gone already: what the caller wanted
	}
	return d.m.fail("delete", rec.Ref, err)
}

// await runs work, which goes on by itself, and waits for it as long as ctx
// lasts.
func await(ctx context.Context, work func() error) error {
	done := make(chan error, 1)
	go func() { done <- work() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Statfs tells the room that the cache has: what can be read and staged.
func (d *collectionNode) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.m.cache.Dir(), &st); err != nil {
		return Errno(err)
	}
	out.FromStatfsT(&st)
	out.NameLen = backends.MaxName
	return 0
}

// mayChange refuses what can never be changed here: 0, EROFS or EPERM.
func (m *mount) mayChange(rec *backends.Record) syscall.Errno {
	if m.opts.ReadOnly {
		return syscall.EROFS
	}
	if rec != nil && rec.Frozen {
		return m.fail("change", rec.Ref, backends.Errorf("change", rec.Ref, backends.Frozen, "the registry protects this image"))
	}
	return 0
}
