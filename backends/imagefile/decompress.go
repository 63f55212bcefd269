package imagefile

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"
)

// compression is squashfs's number for a compressor.
type compression uint16

const (
	compGzip compression = iota + 1
	compLzma
	compLzo
	compXz
	compLz4
	compZstd
)

// String gives mksquashfs's name, or "" for a number it does not have.
func (c compression) String() string {
	names := [...]string{"", "gzip", "lzma", "lzo", "xz", "lz4", "zstd"}
	if int(c) < len(names) {
		return names[c]
	}
	return ""
}

// maxDict is the largest dictionary that a block of the largest size can use,
// in bytes; a stream that asks for more was not made by mksquashfs.
const maxDict = 1 << 20

// decompress expands one squashfs block of at most limit bytes. What it
// allocates is bounded by limit and maxDict. Anything else than such a block
// is Corrupt, a decompressor's panic included.
func (c compression) decompress(src []byte, limit int) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, corrupt("%s: %v", c, p)
		}
	}()
	switch c {
	case compGzip:
		out, err = readAll(limit, func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) }, src)
	case compXz:
		out, err = readAll(limit, func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, maxDict) }, src)
	case compLzma:
		out, err = readAll(limit, newLzma, src)
	case compLz4:
		out = make([]byte, limit)
		var n int
		n, err = lz4.UncompressBlock(src, out)
		out = out[:max(n, 0)]
	case compZstd:
		out, err = unzstd(src, limit)
	case compLzo:
		out, err = unlzo(src, limit)
	default:
		return nil, corrupt("compression %d", uint16(c))
	}
	if err == nil && (len(out) == 0 || len(out) > limit) {
		err = fmt.Errorf("a block of %d bytes, not 1 to %d", len(out), limit)
	}
	if err != nil {
		return nil, corrupt("%s: %w", c, err)
	}
	return out, nil
}

// readAll reads at most one byte more than limit.
func readAll(limit int, open func(io.Reader) (io.Reader, error), src []byte) ([]byte, error) {
	r, err := open(bytes.NewReader(src))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, int64(limit)+1))
}

// newLzma refuses a dictionary size that the library would allocate unseen.
func newLzma(r io.Reader) (io.Reader, error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	if dict := binary.LittleEndian.Uint32(head[1:]); dict > maxDict {
		return nil, fmt.Errorf("dictionary of %d bytes", dict)
	}
	return lzma.ReaderConfig{DictCap: lzma.MinDictCap}.NewReader(io.MultiReader(bytes.NewReader(head), r))
}

func unzstd(src []byte, limit int) ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(uint64(limit)))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.DecodeAll(src, make([]byte, 0, limit))
}
