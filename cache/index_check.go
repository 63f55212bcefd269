package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	iofs "io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// bbolt trusts its file: a page number that is off by a bit makes it
// panic, in goroutines that nobody can guard too, or recurse until the stack
// is full, which no recover survives. checkBolt reads the structure first.
// The format is bbolt's version 2, in the machine's byte order.

const (
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	boltBranch     = 0x01
	boltLeaf       = 0x02
	boltMeta       = 0x04
	boltFreelist   = 0x10
	boltHeader     = 16 // of a page; also the size of an element and of a bucket
	boltMetaSize   = 64 // of a meta, with its checksum
	boltDepth      = 64 // deeper than any real tree
	boltNoFreelist = ^uint64(0)
)

// checkBolt returns errDamaged unless the file at path is one that bbolt can
// walk safely: each page of the tree is used once, is of the right kind
// and holds its elements, in order. An absent or empty file is fine. The
// values are not read; they carry their own checksums.
func checkBolt(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Mode().IsRegular() && info.Size() == 0 {
		return err
	}
	page := os.Getpagesize()
	if !info.Mode().IsRegular() || info.Size() < int64(2*page) || int64(int(info.Size())) != info.Size() {
		return fmt.Errorf("%w: size", errDamaged)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	c := boltCheck{data: data, page: uint64(page), seen: map[uint64]bool{}}
	if err := c.all(); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil
}

type boltCheck struct {
	data []byte
	page uint64 // size in bytes
	end  uint64 // first page number that is not in use
	seen map[uint64]bool
	last []byte // key before the next one, in the bucket being walked; nil at its start
}

func (c *boltCheck) u16(at uint64) uint64 { return uint64(binary.NativeEndian.Uint16(c.data[at:])) }
func (c *boltCheck) u32(at uint64) uint64 { return uint64(binary.NativeEndian.Uint32(c.data[at:])) }
func (c *boltCheck) u64(at uint64) uint64 { return binary.NativeEndian.Uint64(c.data[at:]) }

func (c *boltCheck) all() error {
	// Of the valid metas the one of the later transaction counts.
	best, txid := uint64(0), uint64(0)
	for i := range uint64(2) {
		at := i*c.page + boltHeader
		h := fnv.New64a()
		h.Write(c.data[at : at+boltMetaSize-8])
		ok := c.u64(at+56) == h.Sum64() && c.u32(at) == boltMagic && c.u32(at+4) == boltVersion && c.u32(at+8) == c.page
		if ok && (best == 0 || c.u64(at+48) > txid) {
			best, txid = at, c.u64(at+48)
		}
	}
	if best == 0 {
		return errors.New("no valid meta page")
	}
	root, freelist := c.u64(best+16), c.u64(best+32)
	c.end = c.u64(best + 40)
	if c.end > uint64(len(c.data))/c.page {
		return errors.New("cut short")
	}
	if err := c.bucket(root, 0); err != nil {
		return err
	}
	return c.freelist(freelist)
}

// span checks a page's header and marks it used; it gives the byte range
// and the flags.
func (c *boltCheck) span(id uint64) (from, to, flags uint64, err error) {
	if id < 2 || id >= c.end {
		return 0, 0, 0, fmt.Errorf("page %d of %d", id, c.end)
	}
	from = id * c.page
	over := c.u32(from + 12)
	if c.u64(from) != id || over >= c.end-id {
		return 0, 0, 0, fmt.Errorf("page %d: header", id)
	}
	for p := id; p <= id+over; p++ {
		if c.seen[p] {
			return 0, 0, 0, fmt.Errorf("page %d is used twice", p)
		}
		c.seen[p] = true
	}
	return from, from + (over+1)*c.page, c.u16(from + 8), nil
}

func (c *boltCheck) bucket(root uint64, depth int) error {
	outer := c.last
	c.last = nil
	err := c.tree(root, depth)
	c.last = outer
	return err
}

func (c *boltCheck) tree(id uint64, depth int) error {
	from, to, flags, err := c.span(id)
	if err != nil {
		return err
	}
	if depth > boltDepth {
		return errors.New("too deep")
	}
	switch flags {
	case boltLeaf:
		return c.leaf(from, to, depth)
	case boltBranch:
	default:
		return fmt.Errorf("page %d: kind %#x", id, flags)
	}
	n := c.u16(from + 10)
	if n == 0 || from+boltHeader+n*boltHeader > to {
		return fmt.Errorf("page %d: %d branches", id, n)
	}
	for e := from + boltHeader; e < from+boltHeader+n*boltHeader; e += boltHeader {
		if pos, size := c.u32(e), c.u32(e+4); e+pos+size > to {
			return fmt.Errorf("page %d: key outside", id)
		}
		if err := c.tree(c.u64(e+8), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks the elements of a leaf page, or of the small leaf that is
// stored within a bucket's own value.
func (c *boltCheck) leaf(from, to uint64, depth int) error {
	n := c.u16(from + 10)
	if from+boltHeader+n*boltHeader > to {
		return fmt.Errorf("leaf at %d: %d elements", from, n)
	}
	for e := from + boltHeader; e < from+boltHeader+n*boltHeader; e += boltHeader {
		flags, key, ksize, vsize := c.u32(e), e+c.u32(e+4), c.u32(e+8), c.u32(e+12)
		value := key + ksize
		if value+vsize > to || flags > 1 {
			return fmt.Errorf("leaf at %d: element outside", from)
		}
		if k := c.data[key:value]; c.last == nil || bytes.Compare(c.last, k) < 0 {
			c.last = k
		} else {
			return fmt.Errorf("leaf at %d: keys out of order", from)
		}
		if flags == 0 {
			continue
		}
		if vsize < boltHeader || depth > boltDepth {
			return fmt.Errorf("leaf at %d: bucket", from)
		}
		root, err := c.u64(value), error(nil)
		switch {
		case root != 0:
			err = c.bucket(root, depth+1)
		case vsize < 2*boltHeader || c.u16(value+boltHeader+8) != boltLeaf:
			err = fmt.Errorf("leaf at %d: inline bucket", from)
		default:
			outer := c.last
			c.last = nil
			err = c.leaf(value+boltHeader, value+vsize, depth+1)
			c.last = outer
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// freelist checks that no page is both free and in use.
func (c *boltCheck) freelist(id uint64) error {
	if id == boltNoFreelist {
		return errors.New("no free list") // this program always writes one
	}
	from, to, flags, err := c.span(id)
	if err != nil {
		return err
	}
	if flags != boltFreelist {
		return fmt.Errorf("free list: kind %#x", flags)
	}
	n, at := c.u16(from+10), from+boltHeader
	if n == 0xFFFF {
		n, at = c.u64(at), at+8
	}
	if n > (to-at)/8 {
		return errors.New("free list: length")
	}
	for ; n > 0; n, at = n-1, at+8 {
		p := c.u64(at)
		if p < 2 || p >= c.end || c.seen[p] {
			return fmt.Errorf("free list: page %d", p)
		}
		c.seen[p] = true
	}
	return nil
}
