package imagefile

import (
	"encoding/binary"
	"io/fs"
)

const (
	metaLen      = 8192     // a metadata block holds at most this many bytes
	maxDir       = 1 << 20  // bytes of one directory's listing
	maxExpanded  = 64 << 20 // bytes that one call expands or copies out
	tablesAtOnce = 1 << 20  // tables up to this size are fetched in one read
	tablesAhead  = 64 << 10
	noFragment   = 0xFFFFFFFF
	stored       = 1 << 24 // in a data block's size: not compressed
	metaStored   = 1 << 15 // likewise in a metadata block's
)

// squashReader finds files by name in a squashfs. It expands only the blocks
// on the way: no table is read as a whole. Not for concurrent use.
//
// The Go readers for squashfs expand blocks without a bound and allocate
// what inodes claim, so a small hostile image ends the process; hence this one.
type squashReader struct {
	squash
	s         *source
	meta      map[int64]metaBlock
	fragments map[uint32][]byte // by index: small neighbours share one
	spent     int64             // of maxExpanded, which bounds both maps
}

type metaBlock struct {
	data []byte
	next int64 // where the following block starts
}

// inodeRef is where an inode is: its metadata block relative to the inode
// table, and its offset in it.
type inodeRef struct {
	block  int64
	offset int
}

func newSquashReader(s *source, q squash) *squashReader {
	return &squashReader{squash: q, s: s, meta: map[int64]metaBlock{}, fragments: map[uint32][]byte{}}
}

func (r *squashReader) root() inodeRef {
	return inodeRef{int64(r.rootInode >> 16 & 0xFFFFFFFF), int(r.rootInode & 0xFFFF)}
}

// bytes gives n bytes at pos of the file system; see source.read.
func (r *squashReader) bytes(pos, n, ahead int64) ([]byte, error) {
	if pos < squashHeaderLen || n < 0 || n > r.bytesUsed-pos {
		return nil, corrupt("%d bytes at %d lie outside the squashfs of %d", n, pos, r.bytesUsed)
	}
	return r.s.read(r.base+pos, n, min(ahead, r.bytesUsed-pos))
}

func (r *squashReader) expand(b []byte, limit int) ([]byte, error) {
	out, err := r.compression.decompress(b, limit)
	if err != nil {
		return nil, err
	}
	return out, r.spend(int64(len(out)))
}

// spend counts n bytes made, and is where a long computation ends early.
func (r *squashReader) spend(n int64) error {
	if r.spent += n; r.spent > maxExpanded {
		return corrupt("reading it makes more than %d bytes", maxExpanded)
	}
	return r.s.alive()
}

// metaBlockAt gives the metadata block that starts at pos.
func (r *squashReader) metaBlockAt(pos int64) (metaBlock, error) {
	if b, ok := r.meta[pos]; ok {
		return b, nil
	}
	if n := r.bytesUsed - r.tables; n <= tablesAtOnce && pos >= r.tables {
		if _, err := r.bytes(r.tables, n, 0); err != nil {
			return metaBlock{}, err
		}
	}
	head, err := r.bytes(pos, 2, tablesAhead)
	if err != nil {
		return metaBlock{}, err
	}
	size := binary.LittleEndian.Uint16(head)
	n := int64(size &^ metaStored)
	if n == 0 || n > metaLen {
		return metaBlock{}, corrupt("metadata block of %d bytes", n)
	}
	data, err := r.bytes(pos+2, n, tablesAhead)
	if err != nil {
		return metaBlock{}, err
	}
	if size&metaStored == 0 {
		if data, err = r.expand(data, metaLen); err != nil {
			return metaBlock{}, err
		}
	}
	b := metaBlock{data, pos + 2 + n}
	r.meta[pos] = b
	return b, nil
}

// cursor reads on through consecutive metadata blocks. After err is set its
// methods give zeros.
type cursor struct {
	r    *squashReader
	rest []byte
	next int64
	err  error
}

func (r *squashReader) cursor(pos int64, offset int) *cursor {
	c := &cursor{r: r, next: pos}
	c.fill()
	if c.err == nil && offset > len(c.rest) {
		c.err = corrupt("offset %d in a metadata block of %d", offset, len(c.rest))
	}
	if c.err == nil {
		c.rest = c.rest[offset:]
	}
	return c
}

func (c *cursor) fill() {
	b, err := c.r.metaBlockAt(c.next)
	c.rest, c.next, c.err = b.data, b.next, err
}

// take gives the next n bytes; n is at most maxDir.
func (c *cursor) take(n int) []byte {
	out := make([]byte, 0, n)
	for c.err == nil && len(out) < n {
		if len(c.rest) == 0 {
			c.fill()
			continue
		}
		k := min(n-len(out), len(c.rest))
		out = append(out, c.rest[:k]...)
		c.rest = c.rest[k:]
	}
	return out[:n]
}

func (c *cursor) u16() uint16 { return binary.LittleEndian.Uint16(c.take(2)) }
func (c *cursor) u32() uint32 { return binary.LittleEndian.Uint32(c.take(4)) }
func (c *cursor) u64() uint64 { return binary.LittleEndian.Uint64(c.take(8)) }

// Inode types; the extended ones carry link counts and attributes besides.
const (
	inodeDir     = 1
	inodeFile    = 2
	inodeExtDir  = 8
	inodeExtFile = 9
)

// dir lists a directory: name to inode. A file that is no directory is
// fs.ErrNotExist.
func (r *squashReader) dir(ref inodeRef) (map[string]inodeRef, error) {
	in := r.cursor(r.inodeTable+ref.block, ref.offset)
	var block, size uint32
	var offset uint16
	kind := in.u16()
	in.take(14) // mode, owner, time, number
	switch kind {
	case inodeDir:
		block = in.u32()
		in.take(4)
		size, offset = uint32(in.u16()), in.u16()
	case inodeExtDir:
		in.take(4)
		size, block = in.u32(), in.u32()
		in.take(6)
		offset = in.u16()
	}
	switch {
	case in.err != nil:
		return nil, in.err
	case kind != inodeDir && kind != inodeExtDir:
		return nil, fs.ErrNotExist
	case size > maxDir:
		return nil, corrupt("directory of %d bytes", size)
	}
	entries := map[string]inodeRef{}
	left := int(size) - 3 // the size counts "." and "..", which are not stored
	if left <= 0 {
		return entries, nil
	}
	c := r.cursor(r.dirTable+int64(block), int(offset))
	for left > 0 && c.err == nil {
		count, start := int64(c.u32())+1, int64(c.u32())
		c.take(4)
		left -= 12
		if count > 256 {
			return nil, corrupt("%d entries under one header of a directory", count)
		}
		for ; count > 0 && left > 0 && c.err == nil; count-- {
			at := c.u16()
			c.take(4)
			n := int(c.u16()) + 1
			left -= 8 + n
			if left < 0 || n > 256 {
				return nil, corrupt("name of %d bytes in a directory", n)
			}
			entries[string(c.take(n))] = inodeRef{start, int(at)}
		}
	}
	return entries, c.err
}

// file gives the first limit bytes of a regular file. Another kind of file is
// fs.ErrNotExist.
func (r *squashReader) file(ref inodeRef, limit int64) ([]byte, error) {
	in := r.cursor(r.inodeTable+ref.block, ref.offset)
	var pos, size int64
	var frag, fragOffset uint32
	kind := in.u16()
	in.take(14)
	switch kind {
	case inodeFile:
		pos = int64(in.u32())
		frag, fragOffset, size = in.u32(), in.u32(), int64(in.u32())
	case inodeExtFile:
		pos, size = int64(in.u64()), int64(in.u64())
		in.take(12)
		frag, fragOffset = in.u32(), in.u32()
		in.take(4)
	}
	switch {
	case in.err != nil:
		return nil, in.err
	case kind != inodeFile && kind != inodeExtFile:
		return nil, fs.ErrNotExist
	case pos < 0 || size < 0:
		return nil, corrupt("file of %d bytes at %d", size, pos)
	}
	want := min(size, limit)
	if err := r.spend(want); err != nil {
		return nil, err
	}
	var out []byte
	for int64(len(out)) < want {
		n := min(size-int64(len(out)), r.blockSize) // what this block holds
		if n < r.blockSize && frag != noFragment {
			tail, err := r.tail(frag, fragOffset, n)
			if err != nil {
				return nil, err
			}
			out = append(out, tail...)
			break
		}
		word := in.u32()
		if in.err != nil {
			return nil, in.err
		}
		data, err := r.block(pos, word, n)
		if err != nil {
			return nil, err
		}
		pos += int64(word &^ stored)
		out = append(out, data...)
	}
	return out[:min(int64(len(out)), want)], nil
}

// block gives the n bytes of the data block at pos whose size word is word.
func (r *squashReader) block(pos int64, word uint32, n int64) ([]byte, error) {
	size := int64(word &^ stored)
	if size == 0 {
		return make([]byte, n), nil // a hole
	}
	if size > r.blockSize {
		return nil, corrupt("data block of %d bytes", size)
	}
	data, err := r.bytes(pos, size, 0)
	if err != nil {
		return nil, err
	}
	if word&stored == 0 {
		if data, err = r.expand(data, int(r.blockSize)); err != nil {
			return nil, err
		}
	}
	if int64(len(data)) < n {
		return nil, corrupt("data block of %d bytes, not %d", len(data), n)
	}
	return data[:n], nil
}

// tail gives n bytes at offset of a fragment block: the end of a file.
func (r *squashReader) tail(index, offset uint32, n int64) ([]byte, error) {
	data, ok := r.fragments[index]
	if !ok {
		var err error
		if data, err = r.fragmentBlock(index); err != nil {
			return nil, err
		}
		r.fragments[index] = data
	}
	if int64(offset)+n > int64(len(data)) {
		return nil, corrupt("%d bytes at %d of a fragment block of %d", n, offset, len(data))
	}
	return data[offset:][:n], nil
}

func (r *squashReader) fragmentBlock(index uint32) ([]byte, error) {
	if r.fragTable < 0 || int64(index) >= r.fragmentCount {
		return nil, corrupt("fragment %d of %d", index, r.fragmentCount)
	}
	const perBlock = metaLen / 16
	at, err := r.bytes(r.fragTable+int64(index/perBlock)*8, 8, 0)
	if err != nil {
		return nil, err
	}
	c := r.cursor(int64(binary.LittleEndian.Uint64(at)), int(index%perBlock)*16)
	pos, word := int64(c.u64()), c.u32()
	if c.err != nil {
		return nil, c.err
	}
	size := int64(word &^ stored)
	if size == 0 || size > r.blockSize {
		return nil, corrupt("fragment block of %d bytes", size)
	}
	data, err := r.bytes(pos, size, 0)
	if err != nil || word&stored != 0 {
		return data, err
	}
	return r.expand(data, int(r.blockSize))
}
