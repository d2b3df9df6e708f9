/*
 * The floor of one lane beside transactions that stay open. docs/relay.md explains the rule; `make model` searches it.
 *
 * A lane keeps in memory, for each slot, the id up to which it need not look: the floor. The danger is a transaction
 * that drew a low id and is still open: the floor rises past its rows, it commits, and nobody ever reads them.
 *
 * Searched: TXS transactions that insert up to IDS rows into SLOTS slots, beside one lane that claims without end and
 * may lose its memory with every claim. Every order of their steps.
 *
 * Shown: a read that the lane uses misses nothing: no row that its snapshot sees lies at or below the floor. With LOOK,
 * where a lane claims only after a look has found rows above its floors: it does not stand still while there are rows.
 */

#ifndef TXS
#define TXS 2
#endif
#ifndef IDS
#define IDS 2
#endif
#ifndef SLOTS
#define SLOTS 1
#endif

#define BIT(n) (1 << (n))
#define HAS(set, n) (((set) >> (n)) & 1)
#define MIN(a, b) ((a) < (b) -> (a) : (b))
#define MAX(a, b) ((a) > (b) -> (a) : (b))

/*
 * The database. Sets are bits: bit r is the row with the id r + 1, bit t the transaction with the xid t + 1. The lane's
 * own xids take no numbers, so that it may claim for ever: such an xid lies between those drawn before and after it.
 */
byte last_xid = 0;       /* the last that a writer drew */
byte ended = 0;          /* transactions that have ended */
byte last_completed = 0; /* the highest xid that has ended */
byte last_id = 0;        /* the sequence's last value */
byte outbox[SLOTS];      /* rows that were committed and not deleted */
byte locked = 0;         /* slots that the lane has locked */

#define IDS_TO(id) (BIT(id) - 1)             /* rows with this id or a lower one */
#define XIDS_BELOW(xid) (BIT((xid) - 1) - 1) /* transactions with a lower xid */
#define ALL_XIDS XIDS_BELOW(TXS + 1)

/* The lane's memory, lost with its connection. */
byte level[SLOTS];         /* each slot's floor */
byte members = 0;          /* transactions that are known to stay open */
byte remembered[TXS];      /* what the floors fall back to when a member ends */
bool candidate = false;
byte candidate_m = 0;      /* the sequence's last value */
byte candidate_p = 0;      /* transactions that had not ended and may own an id up to it */
byte candidate_before = 0; /* the candidate before it: what was not in that one's P owns only higher ids */

byte i, s; /* counters: zero between two steps */

#if SLOTS > 1
#define TELL_FLOORS printf("the lane's floors are %d and %d\n", level[0], level[1])
#else
#define TELL_FLOORS printf("the lane's floor is %d\n", level[0])
#endif

/* What is right, and the mistakes that can be switched on. */

#ifdef MISTAKE_XIP_ALONE
#define P xip
#else
#define P (xip | XIDS_BELOW(x) & ~XIDS_BELOW(xmax)) /* xip lists nothing from xmax on */
#endif

#ifdef MISTAKE_REMEMBER_THE_NEW_FLOOR
#define REMEMBER candidate_m
#else
#define REMEMBER candidate_before
#endif

#ifdef MISTAKE_ROWS_LEFT_DO_NOT_COUNT
#define IS_LEFT(row) false
#else
#define IS_LEFT(row) HAS(rows[s], row)
#endif

#ifdef MISTAKE_RISE_OVER_ROWS_LEFT
#define IS_KEPT(row) false
#else
#define IS_KEPT(row) HAS(kept[s], row)
#endif

#ifdef MISTAKE_RISE_TO_THE_NEW_CANDIDATE
#define RISES_TO candidate_m
#else
#define RISES_TO counted
#endif

#if defined(MISTAKE_NO_FALL_BACK)
#define FALLS_BACK(slot) false
#elif defined(MISTAKE_FALL_BACK_IN_LOCKED_SLOTS_ONLY)
#define FALLS_BACK(slot) HAS(locked, slot)
#else
#define FALLS_BACK(slot) true
#endif

#ifdef LOOK
#define IS_WORTH(slot) (outbox[slot] & ~IDS_TO(level[slot]))
#else
#define IS_WORTH(slot) true
#endif

#if defined(LOOK) && !defined(MISTAKE_LOOK_WITHOUT_FALLING_BACK)
#define ENDED_MEMBERS (members & ended) /* as any snapshot shows that is taken now */
#else
#define ENDED_MEMBERS 0
#endif

/* A row goes to one slot or the other, or is never seen: rolled back, or taken by another relay. */
inline insert() {
    if
    :: mine[0] = mine[0] | BIT(last_id)
    :: last_id && SLOTS > 1 -> mine[SLOTS - 1] = mine[SLOTS - 1] | BIT(last_id)
    :: true
    fi;
    last_id++;
    printf("transaction %d draws the id %d\n", t + 1, last_id)
}

proctype Writer(byte t) {
    byte mine[SLOTS]; /* rows that are not committed yet */

#ifdef MISTAKE_ID_BEFORE_XID
    /* The column that draws the id stands before the one that draws the xid. */
    if
    :: atomic { last_id < IDS -> insert() }
    :: true
    fi;
#endif
    /* The first insert draws the xid, then an id. Writers are numbered in the order in which they come to this. */
    atomic { last_xid == t -> last_xid++; printf("transaction %d draws its xid\n", t + 1) };
    do
    :: atomic { last_id < IDS -> insert() }
    :: d_step {
        true ->
        printf("transaction %d ends and leaves rows {%d}\n", t + 1, mine[0] | mine[SLOTS - 1]);
        for (s : 0 .. SLOTS - 1) {
            outbox[s] = outbox[s] | mine[s];
            mine[s] = 0
        };
        s = 0;
        ended = ended | BIT(t);
        last_completed = MAX(last_completed, t + 1)
    }; break
    od
}

inline forget() {
    for (s : 0 .. SLOTS - 1) { level[s] = 0 };
    for (i : 0 .. TXS - 1) { remembered[i] = 0 };
    s = 0;
    i = 0;
    members = 0;
    candidate = false;
    candidate_m = 0;
    candidate_p = 0;
    candidate_before = 0;
    printf("the lane's connection is lost, and its memory\n")
}

/* Step 3: what these members wrote may lie below the floor of any slot. */
inline fall_back() {
    for (i : 0 .. TXS - 1) {
        if
        :: HAS(back, i) ->
            for (s : 0 .. SLOTS - 1) {
                if
                :: FALLS_BACK(s) -> level[s] = MIN(level[s], remembered[i])
                :: else
                fi
            };
            s = 0;
            remembered[i] = 0
        :: else
        fi
    };
    i = 0;
    printf("the lane learns the end of transactions {%d} and falls back\n", back);
    TELL_FLOORS;
    members = members & ~back;
    back = 0;
    p = 0
}

/* Step 4: the candidate becomes the floor of the slots that were read, but of no row that was seen there. What is still
   open becomes a member. */
inline raise_floor() {
    for (i : 0 .. TXS - 1) {
        if
        :: HAS(candidate_p & open & ~members, i) ->
            members = members | BIT(i);
            remembered[i] = REMEMBER
        :: else
        fi
    };
    for (s : 0 .. SLOTS - 1) {
        if
        :: HAS(locked, s) ->
            i = 0;
            do
            :: i < candidate_m && !IS_LEFT(i) -> i++
            :: else -> break
            od;
            level[s] = i
        :: else
        fi
    };
    s = 0;
    i = 0;
    candidate_before = candidate_m;
    printf("the lane's candidate counts, members are transactions {%d}\n", members);
    TELL_FLOORS
}

/* Step 6: after the COMMIT the floor rises over what was read and is gone, to where the candidate that counted ends. */
inline rise() {
    for (s : 0 .. SLOTS - 1) {
        if
        :: HAS(locked, s) ->
            i = 0;
            do
            :: i < RISES_TO && !IS_KEPT(i) -> i++
            :: else -> break
            od;
            level[s] = MAX(level[s], i)
        :: else
        fi
    };
    s = 0;
    i = 0;
    TELL_FLOORS
}

active proctype Lane() {
    byte m;           /* the sequence's last value */
    byte x;           /* own xid: higher than any below this number; 0: not drawn */
    byte xip;         /* transactions: pg_snapshot_xip */
    byte xmax;        /* pg_snapshot_xmax */
    byte open;        /* transactions that had not ended when the snapshot was taken, for all it knows */
    byte rows[SLOTS]; /* what was read */
    byte kept[SLOTS]; /* what was read and not deleted */
    byte counted;     /* the candidate that this read has let count */
    byte p;           /* transactions: P */
    byte back;        /* transactions: members that have ended */
    bool missed;      /* a row that the snapshot sees lies at or below the floor */

end_claim:
    do
    :: /* 1. LOCK some slots; the same statement reads the sequence. With LOOK it locks only where it sees rows above
          the floor, and its snapshot, too, may show that members have ended. */
        atomic {
            IS_WORTH(0) || IS_WORTH(SLOTS - 1) || ENDED_MEMBERS ->
            back = ENDED_MEMBERS;
            if
            :: back -> d_step { fall_back() }
            :: else
            fi;
            if
            :: IS_WORTH(0) -> locked = BIT(0)
            :: SLOTS > 1 && IS_WORTH(SLOTS - 1) -> locked = BIT(1)
            :: SLOTS > 1 && IS_WORTH(0) && IS_WORTH(SLOTS - 1) -> locked = BIT(0) | BIT(1)
            :: !IS_WORTH(0) && !IS_WORTH(SLOTS - 1) -> goto end_claim
            fi;
#ifdef MISTAKE_SNAPSHOT_OF_AN_EARLIER_STATEMENT
            open = ALL_XIDS & ~ended;
#endif
            m = last_id;
            printf("the lane locks slots {%d} and reads the sequence: m = %d\n", locked, m)
        };
read:
        /* 2. READ begins with its snapshot … */
        atomic {
            xmax = last_completed + 1;
            xip = XIDS_BELOW(last_xid + 1) & ~ended & XIDS_BELOW(xmax);
#ifndef MISTAKE_SNAPSHOT_OF_AN_EARLIER_STATEMENT
            open = xip | ALL_XIDS & ~XIDS_BELOW(xmax);
#endif
            missed = false;
            for (s : 0 .. SLOTS - 1) {
                if
                :: HAS(locked, s) ->
                    rows[s] = outbox[s] & ~IDS_TO(level[s]);
                    missed = missed || (outbox[s] & IDS_TO(level[s]))
                :: else
                fi
            };
            s = 0;
            printf("the lane reads rows {%d}\n", rows[0] | rows[SLOTS - 1]);
            printf("the lane's snapshot has the xmax %d, in xip transactions {%d}\n", xmax, xip)
        };
        /* … and draws the lane's own xid, the first time that it runs. */
        atomic {
            if
            :: x == 0 -> x = last_xid + 1
            :: else
            fi;
            p = P;
            printf("the lane's own xid is above %d, in P are transactions {%d}\n", x - 1, p)
        };
        /* The rest is the lane's memory, or may as well happen at once. */
        atomic {
#ifdef MISTAKE_SEQUENCE_AFTER_XID
            m = last_id;
#endif
#ifdef MISTAKE_SNAPSHOT_OF_A_LATER_STATEMENT
            open = ALL_XIDS & ~ended;
#endif
            /* 3. Members that have ended: fall back, throw the read away, read again. */
            back = members & ~open;
            if
            :: back ->
                d_step { fall_back() };
#ifndef MISTAKE_KEEP_THE_READ
                goto read
#endif
            :: else
            fi;
            assert(!missed); /* a row that is there is not read */
            /* 4. A candidate of an earlier claim counts when nothing of its P is open, or when it has grown old. The
               xids of other relays may put off the former, time decides on the latter: so either is possible here. */
            if
            :: candidate -> d_step { raise_floor(); counted = candidate_m; candidate_m = m; candidate_p = p }
            :: !candidate -> candidate = true; candidate_m = m; candidate_p = p
            :: candidate
            fi;
            /* 5. and 6. Publish; delete what was acknowledged, any part of what was read; COMMIT. */
            do
            :: s < SLOTS && !rows[s] -> s++; i = 0
            :: s < SLOTS && rows[s] && !HAS(rows[s], i) -> i++
            :: s < SLOTS && HAS(rows[s], i) -> rows[s] = rows[s] & ~BIT(i); outbox[s] = outbox[s] & ~BIT(i)
            :: s < SLOTS && HAS(rows[s], i) -> rows[s] = rows[s] & ~BIT(i); kept[s] = kept[s] | BIT(i)
            :: s == SLOTS -> break
            od;
            s = 0;
            if
            :: counted -> d_step { rise() }
            :: else
            fi;
            kept[0] = 0;
            kept[SLOTS - 1] = 0;
            counted = 0;
            last_completed = MAX(last_completed, x - 1);
            candidate_p = candidate_p & ~ended; /* as all later snapshots will see it: fewer states, the same rule */
            m = 0;
            x = 0;
            xip = 0;
            xmax = 0;
            open = 0;
            p = 0;
            missed = false;
            locked = 0;
            if
            :: true
            :: d_step { forget() } /* before the COMMIT, when nothing was deleted, or after it */
            fi
        }
    od
}

#ifdef LOOK
/* This waits outside an end state: a search for invalid end states finds a lane that stands still beside rows. */
active proctype Delivered() {
    ended == ALL_XIDS && !outbox[0] && !outbox[SLOTS - 1]
}
#endif

init {
    atomic {
        for (i : 0 .. TXS - 1) { run Writer(i) };
        i = 0
    }
}
