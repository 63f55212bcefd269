package imagefile

import "errors"

var (
	errLzoShort = errors.New("compressed data end early")
	errLzoRange = errors.New("copy from or to outside the block")
)

// unlzo expands one LZO1X block of at most limit bytes, after the kernel's
// description of the format (Documentation/staging/lzo.rst). It is here
// because the Go package for it is under the GPL.
func unlzo(src []byte, limit int) ([]byte, error) {
	l := lzo{src: src, dst: make([]byte, 0, limit)}
	// state is what the previous instruction was: 0 to 3 literals after a match, or 4
	// for a literal run; it chooses the meaning of the short match.
	state := 0
	if len(src) > 0 && src[0] > 17 {
		state = int(src[0]) - 17
		l.at = 1
		l.literals(state)
		state = min(state, 4)
	}
	for l.err == nil {
		inst := l.byte()
		var length, distance, next int
		switch {
		case inst < 16 && state == 0:
			l.literals(l.length(inst, 15) + 3)
			state = 4
			continue
		case inst < 16:
			length, distance, next = 2, l.byte()<<2+inst>>2+1, inst&3
			if state == 4 {
				length, distance = 3, distance+2048
			}
		case inst < 32:
			length = l.length(inst&7, 7) + 2
			low := l.short()
			distance, next = inst&8<<11+low>>2, low&3
			if distance == 0 {
				return l.dst, l.err
			}
			distance += 16384
		case inst < 64:
			length = l.length(inst&31, 31) + 2
			low := l.short()
			distance, next = low>>2+1, low&3
		default:
			length, distance, next = inst>>5+1, l.byte()<<3+inst>>2&7+1, inst&3
			if inst < 128 {
				length = 3 + inst>>5&1
			}
		}
		l.match(distance, length)
		l.literals(next)
		state = next
	}
	return nil, l.err
}

// lzo is the state of one expansion; after err is set its methods do nothing
// and give 0.
type lzo struct {
	src []byte
	at  int
	dst []byte // its capacity is the limit
	err error
}

func (l *lzo) byte() int {
	if l.err != nil || l.at >= len(l.src) {
		l.err = errors.Join(l.err, errLzoShort)
		return 0
	}
	l.at++
	return int(l.src[l.at-1])
}

func (l *lzo) short() int { return l.byte() | l.byte()<<8 }

// length gives n, or for 0 the long form: base, 255 for each zero byte, and the
// byte that ends them.
func (l *lzo) length(n, base int) int {
	if n != 0 {
		return n
	}
	n = base
	for l.err == nil {
		b := l.byte()
		if b != 0 {
			return n + b
		}
		if n += 255; n > cap(l.dst) {
			l.err = errLzoRange
		}
	}
	return 0
}

func (l *lzo) literals(n int) {
	if l.err != nil {
		return
	}
	if n > len(l.src)-l.at || n > cap(l.dst)-len(l.dst) {
		l.err = errLzoRange
		return
	}
	l.dst = append(l.dst, l.src[l.at:l.at+n]...)
	l.at += n
}

func (l *lzo) match(distance, n int) {
	if l.err != nil {
		return
	}
	if distance > len(l.dst) || n > cap(l.dst)-len(l.dst) {
		l.err = errLzoRange
		return
	}
	for range n { // byte by byte: the source may overlap what is being written
		l.dst = append(l.dst, l.dst[len(l.dst)-distance])
	}
}
