package fs

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/imagefile"
	"github.com/sregistry/sregistry-fs/cache"
)

const (
	xattrPrefix = "user.sregistry."
	labelPrefix = xattrPrefix + "label."
	pinName     = xattrPrefix + "pin"
	shareName   = xattrPrefix + "share"

	// maxXattr is where values are cut, below the kernel's 64 KiB.
	maxXattr = 60 << 10
	cutMark  = "\n[cut]"

	// attributesLife is how long computed attributes serve: getfattr -d asks
	// twice for every name.
	attributesLife = 2 * time.Second
)

// attributes are the extended attributes of an image at one moment.
type attributes struct {
	values map[string]string
	made   time.Time
}

func (a *attributes) names() []string {
	names := make([]string, 0, len(a.values))
	for name := range a.values {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// attributesOf computes the attributes of n. It makes at most one record
// request, downloads no image, and with network false makes no request at
// all. What cannot be learned is left out.
func (n *imageNode) attributesOf(ctx context.Context, network bool) *attributes {
	n.mu.Lock()
	known := n.xattrs
	n.mu.Unlock()
	if known != nil && n.m.now().Sub(known.made) < attributesLife {
		return known
	}
	rec := n.record()
	if network {
		full, err := n.settle(ctx)
		if err != nil {
			n.m.log.Debug("the record is not up to date", "image", rec.Ref.String(), "error", err)
		}
		rec = full
	}
	inspect, state := n.m.cache.Inspect(ctx, rec, network)
	a := &attributes{values: n.m.describe(rec, inspect, state), made: n.m.now()}
	if network {
		n.mu.Lock()
		n.xattrs = a
		n.mu.Unlock()
	}
	return a
}

// describe puts a record into attributes.
func (m *mount) describe(rec backends.Record, inspect *imagefile.Inspect, state cache.InspectState) map[string]string {
	cached := "no"
	if _, _, ok := m.cache.Store.Cached(rec); ok {
		cached = "yes"
	}
	values := map[string]string{
		"backend":    m.opts.Backend,
		"collection": rec.Collection,
		"image":      rec.Image,
		"tag":        rec.Tag,
		"version":    word(rec),
		"size":       sizeText(rec.Size),
		"uri":        m.opts.Backend + "://" + rec.Ref.String(),
		"cached":     cached,
		"inspect":    string(state),
		"record":     string(Document(m.opts.Backend, rec, inspect)),
	}
	if !rec.Digest.IsZero() {
		values["digest"] = rec.Digest.String()
	}
	if !rec.Created.IsZero() {
		values["created"] = rec.Created.UTC().Format(time.RFC3339)
	}
	if rec.Frozen {
		values["frozen"] = "true"
	}
	if m.cache.Store.Pinned(rec) {
		values["pin"] = "1"
	}
	for name, value := range rec.Labels {
		values["label."+xattrSafe(name)] = value
	}
	if inspect != nil {
		for name, value := range inspect.Labels {
			values["label."+xattrSafe(name)] = value
		}
		for _, part := range inspectParts(*inspect) {
			if part.value != "" {
				values[part.name] = part.value
			}
		}
	}
	out := make(map[string]string, len(values))
	for name, value := range values {
		if len(xattrPrefix+name) > backends.MaxName {
			continue // the kernel takes no longer name
		}
		if len(value) > maxXattr {
			value = value[:maxXattr-len(cutMark)] + cutMark
		}
		out[xattrPrefix+name] = value
	}
	return out
}

// Getxattr gives one attribute of the image, or ENODATA.
func (n *imageNode) Getxattr(ctx context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	if !strings.HasPrefix(attr, xattrPrefix) {
		return 0, syscall.ENODATA
	}
	wait, cancel := n.m.killable(ctx, listLimit)
	defer cancel()
	value, ok := n.attributesOf(wait, true).values[attr]
	if !ok {
		return 0, syscall.ENODATA
	}
	return fill(dest, []byte(value))
}

// Listxattr names the attributes. A caller that asks for the size of the list
// first (getfattr, cp -a, rsync -X) may cost a record request; one that comes with a
// buffer (ls -l of newer coreutils, for every file of a directory) costs none.
func (n *imageNode) Listxattr(ctx context.Context, dest []byte) (uint32, syscall.Errno) {
	wait, cancel := n.m.killable(ctx, listLimit)
	defer cancel()
	return fill(dest, nameList(n.attributesOf(wait, len(dest) == 0).names()))
}

// Setxattr pins the image, or accepts a read-only attribute's own value (cp -a
// and rsync -X write back what they read).
func (n *imageNode) Setxattr(ctx context.Context, attr string, data []byte, _ uint32) syscall.Errno {
	rec := n.record()
	switch {
	case attr == pinName:
		pin := string(data) != "" && string(data) != "0"
		n.forgetAttributes()
		return n.m.fail("pin", rec.Ref, n.m.cache.Store.SetPin(rec, pin))
	case attr == shareName, !strings.HasPrefix(attr, xattrPrefix):
		return syscall.EOPNOTSUPP
	}
	wait, cancel := n.m.killable(ctx, listLimit)
	defer cancel()
	if value, ok := n.attributesOf(wait, true).values[attr]; ok && value == string(data) {
		return 0
	}
	return syscall.EPERM
}

// Removexattr unpins the image. What the record says stays, and the answer is
// success: rsync -X removes whatever its source does not have.
func (n *imageNode) Removexattr(ctx context.Context, attr string) syscall.Errno {
	rec := n.record()
	if attr != pinName {
		wait, cancel := n.m.killable(ctx, listLimit)
		defer cancel()
		return mayRemove(n.attributesOf(wait, true).values, attr)
	}
	if !n.m.cache.Store.Pinned(rec) {
		return syscall.ENODATA
	}
	n.forgetAttributes()
	return n.m.fail("unpin", rec.Ref, n.m.cache.Store.SetPin(rec, false))
}

func (n *imageNode) forgetAttributes() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.xattrs = nil
}

// values of a file being written: what its close will push it as.
func (n *stageNode) values() map[string]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	values := map[string]string{xattrPrefix + "backend": n.m.opts.Backend, xattrPrefix + "staged": "yes"}
	if n.isImage() {
		values[xattrPrefix+"collection"] = n.ref.Collection
		values[xattrPrefix+"image"] = n.ref.Image
		values[xattrPrefix+"tag"] = n.ref.Tag
	}
	return values
}

// Getxattr gives one attribute of a file being written, or ENODATA.
func (n *stageNode) Getxattr(_ context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	value, ok := n.values()[attr]
	if !ok {
		return 0, syscall.ENODATA
	}
	return fill(dest, []byte(value))
}

// Listxattr names the attributes of a file being written.
func (n *stageNode) Listxattr(_ context.Context, dest []byte) (uint32, syscall.Errno) {
	return fill(dest, nameList((&attributes{values: n.values()}).names()))
}

// Setxattr accepts the names that cp -a and rsync -X carry over from
// another mount: the image brings its own labels and the registry makes its own record.
func (n *stageNode) Setxattr(_ context.Context, attr string, _ []byte, _ uint32) syscall.Errno {
	if strings.HasPrefix(attr, xattrPrefix) && attr != shareName {
		return 0
	}
	return syscall.EOPNOTSUPP
}

// Removexattr removes nothing and accepts what rsync -X asks.
func (n *stageNode) Removexattr(_ context.Context, attr string) syscall.Errno {
	return mayRemove(n.values(), attr)
}

// mayRemove answers the removal of an attribute that stays.
func mayRemove(values map[string]string, attr string) syscall.Errno {
	if _, ok := values[attr]; ok {
		return 0
	}
	return syscall.ENODATA
}

func (d *collectionNode) values() map[string]string {
	values := map[string]string{xattrPrefix + "backend": d.m.opts.Backend}
	if d.name != "" {
		values[xattrPrefix+"collection"] = d.name
		values[xattrPrefix+"uri"] = d.m.opts.Backend + "://" + d.name
	}
	return values
}

// Getxattr gives one attribute of the directory, or ENODATA.
func (d *collectionNode) Getxattr(_ context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	value, ok := d.values()[attr]
	if !ok {
		return 0, syscall.ENODATA
	}
	return fill(dest, []byte(value))
}

// Listxattr names the directory's attributes.
func (d *collectionNode) Listxattr(_ context.Context, dest []byte) (uint32, syscall.Errno) {
	return fill(dest, nameList((&attributes{values: d.values()}).names()))
}

// Setxattr accepts what cp -a and rsync -X carry over from another directory,
// and changes nothing.
func (d *collectionNode) Setxattr(_ context.Context, attr string, _ []byte, _ uint32) syscall.Errno {
	if _, ok := d.values()[attr]; ok {
		return 0
	}
	if strings.HasPrefix(attr, xattrPrefix) {
		return syscall.EPERM
	}
	return syscall.EOPNOTSUPP
}

// Removexattr removes nothing and accepts what rsync -X asks.
func (d *collectionNode) Removexattr(_ context.Context, attr string) syscall.Errno {
	return mayRemove(d.values(), attr)
}

// nameList is the wire form of a list of names: each ends in NUL.
func nameList(names []string) []byte {
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return list
}

// fill answers an attribute request: the size when asked for the size,
// ERANGE when the buffer is too small.
func fill(dest, value []byte) (uint32, syscall.Errno) {
	if len(dest) < len(value) {
		return uint32(len(value)), syscall.ERANGE
	}
	return uint32(copy(dest, value)), 0
}
